"""Image sets that TFDS has prepared as array_record; TensorFlow is not needed to read."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpfree.data.raw import DataError, Part, Raw


def read(name: str, splits: tuple[str, str]) -> tuple[Raw, dict[str, Any]]:
    """A prepared copy, wholly in memory, and what the record says of it.

    Args:
      name: as TFDS knows it, such as "imagenet_resized/32x32".
      splits: TFDS's names of the training and the test part.

    Copies are looked for where TFDS keeps them: TFDS_DATA_DIR, or
    ~/tensorflow_datasets. Examples come in TFDS's own, fixed, shuffled order. Nothing is
    downloaded. Raises DataError if TFDS is not installed or has no such copy.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f"tensorflow-datasets is not installed ({error})") from error
    try:
        sources = tfds.data_source(name, split=list(splits), download=False)
        info = tfds.builder(name).info
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise DataError("TFDS has no array_record copy of it") from error
    found = Raw(*(_part(source) for source in sources))
    sha256 = {s: _digest(p) for s, p in zip(splits, found, strict=True)}
    return found, {"from": f"TFDS, {info.full_name}", "sha256": sha256}


def _part(source: Sequence[dict[str, Any]]) -> Part:
    images: Any = None
    labels = np.empty(len(source), np.int32)
    for i in range(len(source)):
        example = source[i]
        if images is None:
            images = np.empty((len(source), *example["image"].shape), np.uint8)
        images[i], labels[i] = example["image"], example["label"]
    return Part(images, labels)


def _digest(part: Part) -> str:
    return hashlib.sha256(part.images.tobytes() + part.labels.tobytes()).hexdigest()
