"""Image sets that TFDS has prepared as array_record; TensorFlow is not needed to read."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bpfree.data import Examples
from bpfree.data.raw import DataError, Part, Raw


class Missing(DataError):
    """TFDS is not installed, or has no prepared copy."""


def read(
    name: str, splits: tuple[str, ...], lazy: bool = False
) -> tuple[Raw, dict[str, Any]]:
    """A prepared copy, in memory, and what the record says of it.

    Args:
      name: as TFDS knows it, such as "imagenet_resized/32x32".
      splits: TFDS's names of the training and the test part.
      lazy: leave the training part on the disk; it becomes `Examples` of raw
        {"image", "label"}, and has no checksum.

    Copies are looked for where TFDS keeps them: TFDS_DATA_DIR, or
    ~/tensorflow_datasets. Examples come in TFDS's own, fixed, shuffled order. Nothing is
    downloaded. Raises Missing; or DataError if the copy cannot be read.
    """
    builder, sources = opened(name, splits)
    with dataset_errors(builder.data_dir):
        in_memory = list(zip(splits, sources, strict=True))[lazy:]
        parts = {split: _part(source) for split, source in in_memory}
    digests = {split: _digest(part) for split, part in parts.items()}
    train: Any = parts.get(splits[0]) or _examples(sources[0], builder.data_dir)
    found = Raw(train, parts[splits[1]])
    return found, {"from": f"TFDS, {builder.info.full_name}", "sha256": digests}


def opened(name: str, splits: tuple[str, ...]) -> tuple[Any, Any]:
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
def dataset_errors(place: Any) -> Iterator[None]:
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
        with dataset_errors(place):
            example = source[i]
        return {
            "image": np.asarray(example["image"]),
            "label": np.int32(example["label"]),
        }

    return Examples(len(source), read)


def _part(source: Sequence[dict[str, Any]]) -> Part:
    first = np.asarray(source[0]["image"])
    images = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for i in range(len(source)):
        example = source[i]
        images[i], labels[i] = example["image"], example["label"]
    return Part(images, labels)


def _digest(part: Part) -> str:
    return hashlib.sha256(part.images.tobytes() + part.labels.tobytes()).hexdigest()
