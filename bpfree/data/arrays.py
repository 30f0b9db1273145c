"""The user's arrays as a data set."""

import hashlib
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpfree.data import Batch, Dataset, Examples, rank_in_class

_RULE = "k-th example of its class: validation k % 5 == 3, test k % 5 == 4"


def load(path: str) -> Dataset:
    """The arrays "x" and "label" of an .npz file, see `dataset`; raises ValueError."""
    if not zipfile.is_zipfile(path):
        reason = "no .npz file" if Path(path).is_file() else "not there, or no file"
        raise ValueError(f"{path} cannot be read: it is {reason}")
    found = {}
    with np.load(Path(path)) as file:
        for key in file.files:
            try:
                found[key] = file[key]
            except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} cannot be read: {key}: {error}") from error
    return dataset(found, path)


def dataset(found: Any, name: str) -> Dataset:
    """A data set out of all its examples, or out of its parts.

    Args:
      found: {"x": (N, ...), "label": (N,) or (N, T)}: labels are whole numbers from 0 on,
        or real ones. Or a source of such examples, with a length and `source[i]` ->
        {"x": (...), "label": ()}, as Grain and TFDS have them. Of the examples of each
        class, in their order, number k goes to validation if k % 5 == 3, to test if
        k % 5 == 4, and to training otherwise (sequences and real labels: of all
        examples). Or a `Dataset`, which is split
        already.
      name: for the run's record and for messages.

    Raises ValueError naming what is wrong.
    """
    found = _gathered(found, name)
    if isinstance(found, Mapping) and not set(found) - {"train", "validation", "test"}:
        raise ValueError(
            f"{name} gives a dict of parts: return bpfree.data.Dataset(train=..., "
            "validation=..., test=..., num_classes=..., source={})"
        )
    if isinstance(found, Mapping):
        found = split(_checked(found, name))
    if not isinstance(found, Dataset):
        raise ValueError(
            f"{name} gives a {type(found).__name__}; return a dict with the arrays 'x' "
            "and 'label' of all examples, or a source with a length whose items are such "
            "dicts of one example, or a bpfree.data.Dataset"
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


def _gathered(found: Any, name: str) -> Any:
    """The arrays of all examples of a source, `source[i]` -> dict; all else as it is."""
    several = hasattr(found, "__len__") and hasattr(found, "__getitem__")
    if not several or isinstance(found, (Mapping, Dataset)) or not len(found):
        return found
    first = found[0]
    if not isinstance(first, Mapping):
        return found
    if len(found) > np.iinfo(np.int32).max:
        raise ValueError(f"{name} has {len(found)} examples: let its source not repeat")
    try:
        examples = [found[i] for i in range(len(found))]
        return {key: np.stack([e[key] for e in examples]) for key in first}
    except ValueError as error:  # examples of several shapes
        raise ValueError(f"{name}: the examples differ: {error}") from error


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
    found = {key: _array(part[key], f"{name}: {key}") for key in ("x", "label")}
    x, label = found["x"], found["label"]
    if not x.ndim or not label.ndim or len(x) != len(label):
        raise ValueError(
            f"{name}: x {x.shape} and label {label.shape} must have as many rows"
        )
    if not len(x):
        raise ValueError(f"{name} has no examples")
    if label.dtype == np.bool_:
        raise ValueError(
            f"{name}: label is bool; label.astype(int) are two classes, and "
            "label.astype(float) the answers of a model with one output for each"
        )
    if label.dtype != np.float32 and label.min() < 0:
        raise ValueError(f"{name}: label {label.min()} is negative; they begin at 0")
    return {**found, "x": x.astype(np.int32) if x.dtype == np.bool_ else x}


def _array(values: Any, name: str) -> np.ndarray:
    """float32, int32 or bool; raises ValueError for what these do not hold."""
    if isinstance(values, Mapping):
        raise ValueError(
            f"{name} is a dict of {sorted(values)}, not one array: put its arrays side "
            "by side, and cut them apart in the model"
        )
    if np.ma.is_masked(values):
        raise ValueError(
            f"{name} has masked entries: fill them, or put the mask into x as columns"
        )
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{name} is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} is {array.dtype}; it must be numbers "
            "(np.unique(names, return_inverse=True)[1] numbers the classes)"
        )
    if array.dtype.kind == "b":
        return array
    if array.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        for value in (array.min(initial=0), array.max(initial=0)):
            if not limits.min <= int(value) <= limits.max:
                raise ValueError(f"{name} has {value}, which is beyond int32")
        return array.astype(np.int32)
    with np.errstate(over="ignore"):
        short = array.astype(np.float32)
    if not np.isfinite(short).all():
        beyond = " in float32" if np.isfinite(array).all() else ""
        raise ValueError(f"{name} has values that are not finite{beyond}")
    return short


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
