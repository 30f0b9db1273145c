"""Image sets that TFDS has prepared as array_record; TensorFlow is not needed to read."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpfree.data.raw import DataError, Part, Raw


class Missing(DataError):
    """TFDS is not installed, or has no prepared copy."""


def read(name: str, splits: tuple[str, str]) -> tuple[Raw, dict[str, Any]]:
    """A prepared copy, wholly in memory, and what the record says of it.

    Args:
      name: as TFDS knows it, such as "imagenet_resized/32x32".
      splits: TFDS's names of the training and the test part.

    Copies are looked for where TFDS keeps them: TFDS_DATA_DIR, or
    ~/tensorflow_datasets. Examples come in TFDS's own, fixed, shuffled order. Nothing is
    downloaded. Raises Missing; or DataError if the copy cannot be read.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise Missing(f"tensorflow-datasets is not installed: {error}") from error
    try:
        builder = tfds.builder(name)
        sources = tfds.data_source(name, split=list(splits), download=False)
    except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
        raise Missing("TFDS has no array_record copy of it") from error
    try:
        found = Raw(*(_part(source) for source in sources))
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"TFDS's copy in {builder.data_dir} cannot be read ({error}): delete it and "
            "prepare it anew"
        ) from error
    sha256 = {s: _digest(p) for s, p in zip(splits, found, strict=True)}
    return found, {"from": f"TFDS, {builder.info.full_name}", "sha256": sha256}


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
