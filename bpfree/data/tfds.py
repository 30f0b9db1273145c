"""Sets that TFDS has prepared as array_record; TensorFlow is not needed to read them."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bpfree.data import Examples
from bpfree.data.raw import DataError, Part, Raw


class Missing(DataError):
    """TFDS is not installed, or has no prepared copy."""


def image(example: dict[str, Any]) -> np.ndarray:
    """What an example of an image set holds besides its label."""
    return np.asarray(example["image"])


def read(
    name: str,
    splits: tuple[str, ...],
    content: Callable[[dict[str, Any]], Any] = image,
    lazy: bool = False,
) -> tuple[Raw, dict[str, Any]]:
    """A prepared copy, in memory, and what the record says of it.

    Args:
      name: as TFDS knows it, such as "imagenet_resized/32x32".
      splits: TFDS's names of the training and the test part.
      content: what is read of an example, next to its label: an image, or a text.
      lazy: leave the training part on the disk; it becomes `Examples` of raw
        {"image", "label"}, and has no checksum.

    Copies are looked for where TFDS keeps them: TFDS_DATA_DIR, or
    ~/tensorflow_datasets. Examples come in TFDS's own, fixed, shuffled order. Nothing is
    downloaded. Raises Missing; or DataError if the copy cannot be read.
    """
    builder, sources = _opened(name, splits)
    with _errors(builder.data_dir):
        in_memory = list(zip(splits, sources, strict=True))[lazy:]
        parts = {split: _part(source, content) for split, source in in_memory}
    digests = {split: _digest(part) for split, part in parts.items()}
    train: Any = parts.get(splits[0]) or _examples(sources[0], builder.data_dir)
    found = Raw(train, parts[splits[1]])
    return found, {"from": f"TFDS, {builder.info.full_name}", "sha256": digests}


def _opened(name: str, splits: tuple[str, ...]) -> tuple[Any, Any]:
    """The builder of a set, and its prepared parts, unread; raises Missing."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise Missing(f"tensorflow-datasets is not installed: {error}") from error
    try:
        builder = tfds.builder(name)
        sources = tfds.data_source(name, split=list(splits), download=False)
    except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
        raise Missing("TFDS has no array_record copy of it") from error
    return builder, sources


@contextlib.contextmanager
def _errors(place: Any) -> Iterator[None]:
    """Errors of reading the copy in a folder, as a DataError that names it."""
    try:
        yield
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"TFDS's copy in {place} cannot be read ({error}): delete it and prepare it "
            "anew"
        ) from error


def _examples(source: Sequence[dict[str, Any]], place: Any) -> Examples:
    def read(i):
        with _errors(place):
            example = source[i]
        return {"image": image(example), "label": np.int32(example["label"])}

    return Examples(len(source), read)


def _part(source: Sequence[dict[str, Any]], content: Callable[..., Any]) -> Part:
    first = content(source[0])
    kind = object if isinstance(first, str) else np.uint8
    contents = np.empty((len(source), *np.shape(first)), kind)
    labels = np.empty(len(source), np.int32)
    for i in range(len(source)):
        example = source[i]
        contents[i], labels[i] = content(example), example["label"]
    return Part(contents, labels)


def _digest(part: Part) -> str:
    if part.images.dtype == object:
        return hashlib.sha256("\n".join(part.images).encode()).hexdigest()
    return hashlib.sha256(part.images.tobytes() + part.labels.tobytes()).hexdigest()
