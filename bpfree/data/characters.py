"""Character texts by name: the next character at every position of a sequence.

`python_topics` is the help text that comes with Python, its module `pydoc_data.topics`.
It is another one in every version of Python: the record holds the version and the SHA-256
of what was made of it, and a run does not resume on another text.

White space of any kind is one space. A paragraph that stands in several topics counts
once, where it appears first. Of every ten paragraphs the first eight are for training,
then one for validation, one for test; a part is one text, a line feed after each
paragraph.

A character's number is its ASCII code - 31, 0 for a line feed, that of "?" for what is
not ASCII: `NUM_CLASSES` in all.
"""

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bpfree.data import Batch, Dataset
from bpfree.data.raw import DataError

NUM_CLASSES = 96


def load(name: str, *, length: int = 32) -> Dataset:
    """The text `name`: x int32 (N, length), and as labels the same one step later.

    Args:
      name: one of `TEXTS`.
      length: characters of an example, T. Examples follow one another in the text.

    Raises DataError: this Python comes without its help text. ValueError: length < 1.
    """
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    found = paragraphs(TEXTS[name]())
    source = {
        "name": name,
        "from": f"pydoc_data.topics of Python {platform.python_version()}",
        "sha256": hashlib.sha256("\n".join(found).encode()).hexdigest(),
        "split": "paragraph k: validation k % 10 == 8, test k % 10 == 9",
    }

    def part(places):
        chosen = (p for k, p in enumerate(found) if k % 10 in places)
        return examples(numbers(chosen), length)

    train, validation, test = (part(places) for places in (range(8), [8], [9]))
    return Dataset(train, validation, test, NUM_CLASSES, source).counted()


def paragraphs(texts: Iterable[str]) -> list[str]:
    """What stands between empty lines, with single spaces; each once, in order."""
    cut = (" ".join(part.split()) for text in texts for part in text.split("\n\n"))
    return [part for part in dict.fromkeys(cut) if part]


def numbers(parts: Iterable[str]) -> np.ndarray:
    """The characters of all paragraphs, a line feed after each, int32 (characters,)."""
    text = "".join(f"{part}\n" for part in parts)
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    return np.maximum(codes - 31, 0)


def examples(text: np.ndarray, length: int) -> Batch:
    """Pieces of a text, and the same one step later; what is left at its end is not used.

    Returns: {"x": (N, length), "label": (N, length)}, N = (characters - 1) // length.
    """
    size = (len(text) - 1) // length * length
    x, label = text[:size], text[1 : size + 1]
    return {"x": x.reshape(-1, length), "label": label.reshape(-1, length)}


def _topics() -> Sequence[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            f"this Python comes without its help text ({error}); on Debian it is part of "
            "libpython3-stdlib"
        ) from error
    return [topics[name] for name in sorted(topics)]


TEXTS: Mapping[str, Callable[[], Sequence[str]]] = {"python_topics": _topics}
