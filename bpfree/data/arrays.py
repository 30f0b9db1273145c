"""The user's arrays as a data set."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpfree.data import Batch, Dataset, Examples, rank_in_class, sizes

_RULE = "k-th example of its class: validation k % 5 == 3, test k % 5 == 4"


def load(path: str) -> Dataset:
    """The arrays "x" and "label" of an .npz file, see `dataset`; raises ValueError."""
    try:
        with np.load(Path(path)) as found:
            return dataset(dict(found), path)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def dataset(found: Any, name: str) -> Dataset:
    """A data set out of all its examples, or out of its parts.

    Args:
      found: {"x": (N, ...), "label": (N,) or (N, T)}: labels are whole numbers from 0 on.
        Of the examples of each class, in their order, number k goes to validation if
        k % 5 == 3, to test if k % 5 == 4, and to training otherwise (sequences: of all
        examples). Or a `Dataset`, which is split already.
      name: for the run's record and for messages.

    Raises ValueError naming what is wrong.
    """
    if isinstance(found, Mapping):
        found = _split(_checked(found, name))
    if not isinstance(found, Dataset):
        raise ValueError(
            f"{name} gives a {type(found).__name__}; return a dict with the arrays 'x' "
            "and 'label', or a bpfree.data.Dataset"
        )
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    arrays: dict[str, Any] = {
        n: _checked(part, name)
        for n, part in parts.items()
        if not isinstance(part, Examples)
    }
    largest = max(part["label"].max() for part in arrays.values())
    if largest >= found.num_classes:
        raise ValueError(f"{name}: label {largest}, but num_classes={found.num_classes}")
    source = {"name": name, "sha256": _digest(arrays.values()), **found.source}
    return found._replace(**arrays, source={**source, **sizes(found)})


def _split(part: Batch) -> Dataset:
    label = part["label"]
    rank = rank_in_class(label) if label.ndim == 1 else np.arange(len(label))
    place = rank % 5
    take = lambda where: {k: v[where] for k, v in part.items()}  # noqa: E731
    classes = int(label.max()) + 1
    train, validation, test = (take(w) for w in (place < 3, place == 3, place == 4))
    return Dataset(train, validation, test, classes, {"split": _RULE})


def _checked(part: Any, name: str) -> Batch:
    """{"x": float32 (int32 for whole numbers), "label": int32}, of one length."""
    missing = [k for k in ("x", "label") if k not in part]
    if missing:
        raise ValueError(f"{name} has no array {missing[0]!r}; it has {sorted(part)}")
    x, label = np.asarray(part["x"]), np.asarray(part["label"])
    if x.dtype.kind not in "fiub" or label.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: x is {x.dtype} and label {label.dtype}; they must be numbers, and "
            "labels whole ones"
        )
    if not x.ndim or not label.ndim or len(x) != len(label) or not len(x):
        raise ValueError(
            f"{name}: x {x.shape} and label {label.shape} must have as many rows, more "
            "than none"
        )
    if label.min() < 0:
        raise ValueError(f"{name}: label {label.min()} is negative; they begin at 0")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: x has values that are not finite")
    kind = np.float32 if x.dtype.kind == "f" else np.int32
    return {"x": x.astype(kind), "label": label.astype(np.int32)}


def _digest(parts: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for key in ("x", "label"):
            digest.update(np.ascontiguousarray(part[key]).tobytes())
    return digest.hexdigest()
