"""Text sets by name, as word numbers or as bags of words.

`ag_news_subset` is AG News as TFDS prepares it (120,000 training items); `ag_news_5k` is
the same test part with 4,999 training items, and `trec` questions of six kinds, from raw
files. Places, checksums and validation are those of `bpfree.data.images`.

Words are what the pattern [a-z0-9]+ finds in the text in lower case. A word's number is

    1 + crc32(word) mod (vocabulary - 1)

so nothing is fitted to the data, and unknown words do not exist; two words may share a
number. Number 0 is "no word".
"""

import re
import zlib
from typing import Any, Literal

import numpy as np

from bpfree.choices import check_choice
from bpfree.data import Batch, Dataset, places, tfds
from bpfree.data.catalogue import TEXTS
from bpfree.data.raw import Part

Form = Literal["ids", "bag"]
_WORD = re.compile("[a-z0-9]+")


def load(
    name: str,
    *,
    dir: str = "",
    form: Form = "ids",
    vocabulary: int = 8192,
    length: int = 64,
) -> Dataset:
    """The text set `name`.

    Args:
      name: one of `catalogue.TEXTS`.
      dir: where the folders of raw files are; "": what BPFREE_DATA_DIR says.
      form: "ids": x int32 (N, length), the first `length` words of each text, then
        zeros; "bag": x float32 (N, vocabulary), how often each number occurs in the
        whole text, divided by the Euclidean length of these counts.
      vocabulary: numbers run from 0 to vocabulary - 1.
      length: of "ids".

    Raises DataError: as `images.load`. ValueError: another form; vocabulary < 2;
    length < 1.
    """
    check_choice("form", form, Form)
    if vocabulary < 2 or length < 1:
        raise ValueError(
            f"vocabulary={vocabulary} must be at least 2, and length={length} at least 1"
        )
    entry = TEXTS[name]
    found, record = places.read(
        name, entry, dir, lambda splits: tfds.read(name, splits, _title_and_description)
    )

    def batch(part: Part) -> Batch:
        words = [numbers(text, vocabulary) for text in part.images]
        x = ids(words, length) if form == "ids" else bags(words, vocabulary)
        return {"x": x, "label": part.labels}

    train, test = map(batch, found)
    return places.dataset(name, entry, record, *places.without_end(train), test)


def numbers(text: str, vocabulary: int) -> list[int]:
    """The numbers of a text's words, in order."""
    words = _WORD.findall(text.lower())
    return [1 + zlib.crc32(word.encode()) % (vocabulary - 1) for word in words]


def ids(words: list[list[int]], length: int) -> np.ndarray:
    """The first `length` numbers of each text, then zeros; int32 (N, length)."""
    x = np.zeros((len(words), length), np.int32)
    for row, found in zip(x, words, strict=True):
        row[: len(found)] = found[:length]
    return x


def bags(words: list[list[int]], vocabulary: int) -> np.ndarray:
    """Counts of numbers, each text's divided by their length; float32 (N, vocabulary)."""
    x = np.zeros((len(words), vocabulary), np.float32)
    for row, found in zip(x, words, strict=True):
        np.add.at(row, found, 1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)


def _title_and_description(example: Any) -> str:
    """Both joined by a space."""
    found = (example[key] for key in ("title", "description"))
    return " ".join(v if isinstance(v, str) else v.decode() for v in found)
