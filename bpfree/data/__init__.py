"""Data sets small enough to live on the device.

`config.data.name` is "digits" or one of the image sets of `bpfree.data.catalogue`; the
other entries of `config.data` go to `digits.load` or `images.load`, which return a
`Dataset`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

Batch = dict[str, Any]
Augment = Callable[[jax.Array, Batch], Batch]


class Dataset(NamedTuple):
    """Labelled examples in three disjoint parts.

    Attributes:
      train, validation, test: {"x": float32 (N, ...), "label": int32 (N,)}; x is (N,
        features) or (N, height, width, channels).
      num_classes: labels are 0 .. num_classes - 1.
      source: what the run's record says of the data (plain values): where it is from, its
        checksum, the rule of the split.
      augment: `(key, batch) -> batch` for training batches, traced into the step; None
        leaves them as they are. The key is consumed.
    """

    train: Batch
    validation: Batch
    test: Batch
    num_classes: int
    source: dict[str, Any]
    augment: Augment | None = None


def sizes(data: Dataset) -> dict[str, int]:
    """Examples in each part."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: len(part["label"]) for name, part in parts.items()}


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier examples have the same label, (N,): 0 for the first of a class.

    Splits made of it hold the classes in equal shares and need no random numbers.
    """
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        (where,) = np.nonzero(labels == label)
        rank[where] = np.arange(len(where))
    return rank
