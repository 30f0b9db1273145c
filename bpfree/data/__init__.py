"""Data sets by name, as arrays that live on the device or examples read one by one.

`config.data.name` is "digits", a text of `bpfree.data.characters` or one of the sets of
`bpfree.data.catalogue`; the other entries of `config.data` go to `load` of `digits`,
`characters`, `text`, `images`, `events` or `graphs`, which returns a `Dataset`. A set of
the user's, "./mine.py:load" or "./mine.npz", becomes one in `bpfree.data.arrays`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

Batch = dict[str, Any]
Augment = Callable[[jax.Array, Batch], Batch]


@dataclass(frozen=True)
class Examples:
    """A training part that is read one example at a time, as Grain reads it.

    Attributes:
      num: how many there are, N.
      read: i -> {"x": (...), "label": ()}.
    """

    num: int
    read: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, i: Any) -> Any:
        return self.read(int(i))


class Dataset(NamedTuple):
    """Labelled examples in three disjoint parts.

    Attributes:
      train, validation, test: {"x": float32 (N, ...), "label": int32 (N,)}; x is (N,
        features) or (N, height, width, channels). Sequences have labels (N, T). Labels
        of a regression are float32, (N,) or (N, D). train may be `Examples` instead.
      num_classes: labels are 0 .. num_classes - 1; of real labels, how many an example
        has, 1 or D. The width of a model's output.
      source: what the run's record says of the data (plain values): where it is from, its
        checksum, the rule of the split.
      augment: `(key, batch) -> batch` for training batches, traced into the step; None
        leaves them as they are. The key is consumed.
    """

    train: Any
    validation: Batch
    test: Batch
    num_classes: int
    source: dict[str, Any]
    augment: Augment | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """The three, by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def counted(self) -> "Dataset":
        """With the sizes of the parts in `source`."""
        return self._replace(source={**self.source, **sizes(self)})


def sizes(data: Dataset) -> dict[str, int]:
    """Examples in each part."""
    return {
        name: len(part if isinstance(part, Examples) else part["label"])
        for name, part in data.parts.items()
    }


def first(part: Batch | Examples, count: int) -> Batch:
    """The first examples of a part, as one batch."""
    if isinstance(part, Examples):
        examples = [part[i] for i in range(count)]
        return {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    return {k: v[:count] for k, v in part.items()}


def one_by_one(part: Batch) -> Examples:
    """Arrays in memory as `Examples`."""
    return Examples(len(part["label"]), lambda i: {k: v[i] for k, v in part.items()})


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many earlier examples have the same label, (N,): 0 for the first of a class.

    Splits made of it hold the classes in equal shares and need no random numbers.
    """
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        (where,) = np.nonzero(labels == label)
        rank[where] = np.arange(len(where))
    return rank
