"""Where the examples of a batch stand after a reshape in row-major order."""

import math

from bpfree.program.place import LOST, Place, Somewhere, together


def reshaped(place: Place, shape, new_shape, batch: int) -> Somewhere:
    """The place after a reshape in row-major order."""
    outer = math.prod(shape[: place.axis]) * place.outer
    return _reshaped(outer, new_shape, batch)


def _reshaped(outer: int, new_shape, batch: int) -> Somewhere:
    """The place of examples that have `outer` copies in front, in row-major order."""
    whole = _on_one_axis(outer, new_shape, batch)
    return _in_parts(outer, new_shape, batch) if whole is LOST else whole


def _in_parts(outer: int, new_shape, batch: int) -> Somewhere:
    """The place of examples that a reshape lays out on several axes."""
    before = 1
    for axis, size in enumerate(new_shape):
        if before * size > outer:
            per, rest = divmod(outer, before)
            count, odd = divmod(size, max(per, 1))
            if rest or odd or batch % count:
                return LOST
            minor = _reshaped(outer * count, new_shape, batch // count)
            return together([Place(axis, per), minor], [count, batch // count])
        before *= size
    return LOST


def _on_one_axis(outer: int, new_shape, batch: int) -> Place | None:
    before = 1
    for axis, size in enumerate(new_shape):
        if before * size >= outer * batch and (size > 1 or batch == 1):
            per, rest = divmod(outer, before)
            inner, odd = divmod(size, max(per, 1) * batch)
            return LOST if rest or odd or not per else Place(axis, per, inner)
        before *= size
    return LOST
