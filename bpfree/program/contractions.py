"""Where the examples of a batch stand after a product: rules of `axes`."""

from bpfree.program.place import LOST, Parts, Place


def dot(eqn, i, place, batch, columns):
    contracted, batched = eqn.params["dimension_numbers"]
    mine, other = batched[i], batched[1 - i]
    if place.axis in contracted[i]:
        return LOST
    if place.axis in mine:
        return place._replace(axis=list(mine).index(place.axis))
    gone = {*contracted[i], *mine}
    free = [a for a in range(eqn.invars[i].aval.ndim) if a not in gone]
    before = len(mine) + free.index(place.axis)
    if i == 1:
        before += eqn.invars[0].aval.ndim - len(contracted[0]) - len(other)
    return place._replace(axis=before)


def exchanged(eqn, i: int, place: Place | Parts, batch: int) -> Place | None:
    """The place of a graph's nodes in a product of their values with an (N, N) matrix."""
    if eqn.primitive.name != "dot_general" or isinstance(place, Parts):
        return LOST
    if (place.outer, place.inner) != (1, 1):
        return LOST
    contracted, batched = eqn.params["dimension_numbers"]
    if place.axis not in contracted[i]:
        return LOST
    shape = eqn.invars[1 - i].aval.shape
    gone = {*contracted[1 - i], *batched[1 - i]}
    free = [a for a, size in enumerate(shape) if a not in gone and size == batch]
    return dot(eqn, 1 - i, Place(free[0]), batch, ()) if len(free) == 1 else LOST


def conv(eqn, i, place, batch, columns):
    numbers = eqn.params["dimension_numbers"]
    if i or place.axis != numbers.lhs_spec[0] or eqn.params["batch_group_count"] > 1:
        return LOST
    return place._replace(axis=numbers.out_spec[0])


def ragged_dot(eqn, i, place, batch, columns):
    return place if i == 0 and place.axis == 0 else LOST


def triangular_solve(eqn, i, place, batch, columns):
    """Matrices and right-hand sides in front; the right-hand sides of a matrix too."""
    free = eqn.outvars[0].aval.ndim - (1 if eqn.params["left_side"] else 2)
    in_front = place.axis < eqn.invars[i].aval.ndim - 2
    return place if in_front or (i == 1 and place.axis == free) else LOST
