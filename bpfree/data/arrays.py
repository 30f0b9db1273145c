"""The user's arrays as a data set."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpfree.data import Batch, Dataset, Examples, rank_in_class

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
      found: {"x": (N, ...), "label": (N,) or (N, T)}: labels are whole numbers from 0 on,
        or real ones. Of the examples of each class, in their order, number k goes to
        validation if k % 5 == 3, to test if k % 5 == 4, and to training otherwise
        (sequences and real labels: of all examples). Or a `Dataset`, which is split
        already.
      name: for the run's record and for messages.

    Raises ValueError naming what is wrong.
    """
    if isinstance(found, Mapping):
        found = split(_checked(found, name))
    if not isinstance(found, Dataset):
        raise ValueError(
            f"{name} gives a {type(found).__name__}; return a dict with the arrays 'x' "
            "and 'label', or a bpfree.data.Dataset"
        )
    arrays: dict[str, Any] = {
        n: _checked(part, f"{name}, {n} part")
        for n, part in found.parts.items()
        if not isinstance(part, Examples)
    }
    _check_alike(arrays, name)
    labels = [part["label"] for part in arrays.values()]
    largest = max(label.max() for label in labels)
    if labels[0].dtype == np.int32 and largest >= found.num_classes:
        raise ValueError(f"{name}: label {largest}, but num_classes={found.num_classes}")
    source = {"name": name, "sha256": _digest(arrays.values()), **found.source}
    return found._replace(**arrays, source=source).counted()


def split(part: Batch) -> Dataset:
    """The parts of one batch of all examples, by the rule of `dataset`."""
    label = part["label"]
    classes, whole = math.prod(label.shape[1:]), label.dtype == np.int32
    if whole:
        classes = int(label.max()) + 1
    if classes > label.size and label.ndim == 1:
        raise ValueError(
            f"label {classes - 1} in {len(label)} examples: classes are numbered "
            "from 0 on without gaps (np.unique(label, return_inverse=True)[1])"
        )
    in_class = whole and label.ndim == 1
    rank = rank_in_class(label) if in_class else np.arange(len(label))
    place = rank % 5
    take = lambda where: {k: v[where] for k, v in part.items()}  # noqa: E731
    train, validation, test = (take(w) for w in (place < 3, place == 3, place == 4))
    rule = _RULE if in_class else _RULE.replace(" of its class", "")
    return Dataset(train, validation, test, classes, {"split": rule})


def _checked(part: Any, name: str) -> Batch:
    """{"x", "label"}: float32, or int32 for whole numbers, of one length."""
    if not isinstance(part, Mapping):
        raise ValueError(f"{name} is a {type(part).__name__}, not a dict of x and label")
    for key in ("x", "label"):
        if key not in part:
            raise ValueError(f"{name} has no array {key!r}; it has {sorted(part)}")
    if more := sorted(set(part) - {"x", "label"}):
        raise ValueError(
            f"{name} has {more} besides x and label, which nothing would read: leave "
            "them out, or put them into x as columns"
        )
    try:
        x, label = np.asarray(part["x"]), np.asarray(part["label"])
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{name} is no array: {error}") from error
    if x.dtype.kind not in "fiub" or label.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: x is {x.dtype} and label {label.dtype}; they must be numbers"
        )
    if not x.ndim or not label.ndim or len(x) != len(label) or not len(x):
        raise ValueError(
            f"{name}: x {x.shape} and label {label.shape} must have as many rows, more "
            "than none"
        )
    if label.dtype.kind != "f" and label.min() < 0:
        raise ValueError(f"{name}: label {label.min()} is negative; they begin at 0")
    found = {"x": x, "label": label}
    for key, values in found.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {key} has values that are not finite")
        found[key] = values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
    return found


def _check_alike(parts: Mapping[str, Batch], name: str) -> None:
    """Refuse parts whose examples are of several shapes or kinds."""
    for key in ("x", "label"):
        kinds = {n: (p[key].shape[1:], p[key].dtype.name) for n, p in parts.items()}
        if len(set(kinds.values())) > 1:
            each = ", ".join(f"{n} {kind} {shape}" for n, (shape, kind) in kinds.items())
            raise ValueError(f"{name}: {key} of one example differs: {each}")


def _digest(parts: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for key in ("x", "label"):
            digest.update(np.ascontiguousarray(part[key]).tobytes())
    return digest.hexdigest()
