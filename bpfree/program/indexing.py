"""Where the examples of a batch stand after a gather or a scatter: rules of `axes`."""

import numpy as np

from bpfree.program.place import LOST, Place


def gather(eqn, i, place, batch, columns):
    numbers = eqn.params["dimension_numbers"]
    out = eqn.outvars[0].aval.ndim
    of_indices = [a for a in range(out) if a not in numbers.offset_dims]
    if i == 1:
        return place._replace(axis=of_indices[place.axis])
    if place.axis in numbers.operand_batching_dims:
        k = numbers.operand_batching_dims.index(place.axis)
        return place._replace(axis=of_indices[numbers.start_indices_batching_dims[k]])
    shape = eqn.invars[0].aval.shape
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [a for a in range(len(shape)) if a not in gone]
    if place.axis in kept and eqn.params["slice_sizes"][place.axis] == shape[place.axis]:
        return place._replace(axis=numbers.offset_dims[kept.index(place.axis)])
    return _by_counting(numbers.start_index_map, of_indices, place, batch, columns)


def _by_counting(index_map, of_indices, place, batch, columns):
    """x[arange(B), ...]: the index along the examples' axis counts the examples."""
    if place.axis not in index_map or (place.outer, place.inner) != (1, 1) or not columns:
        return LOST
    counted = columns[index_map.index(place.axis)]
    for axis in range(0 if counted is None else counted.ndim):
        shape = [batch if a == axis else 1 for a in range(counted.ndim)]
        if counted.shape[axis] == batch and np.all(
            counted == np.arange(batch).reshape(shape)
        ):
            return Place(of_indices[axis])
    return LOST


def scatter(eqn, i, place, batch, columns):
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = (v.aval for v in eqn.invars)
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    kept = [a for a in range(operand.ndim) if a not in gone]
    of_indices = [a for a in range(updates.ndim) if a not in numbers.update_window_dims]
    batching = dict(
        zip(
            numbers.operand_batching_dims,
            numbers.scatter_indices_batching_dims,
            strict=True,
        )
    )
    if i == 0:
        written = place.axis in batching or (
            place.axis in kept
            and updates.shape[numbers.update_window_dims[kept.index(place.axis)]]
            == operand.shape[place.axis]
        )
        if written:
            return place
        axes = of_indices
        found = _by_counting(
            numbers.scatter_dims_to_operand_dims, axes, place, batch, columns
        )
        return LOST if found is None else place
    if i == 2 and place.axis in numbers.update_window_dims:
        axis = kept[numbers.update_window_dims.index(place.axis)]
        whole = updates.shape[place.axis] == operand.shape[axis]
        return place._replace(axis=axis) if whole else LOST
    axis = place.axis if i == 1 else of_indices.index(place.axis)
    for mine, theirs in batching.items():
        if theirs == axis:
            return place._replace(axis=mine)
    for k, mine in enumerate(numbers.scatter_dims_to_operand_dims):
        here = Place(mine)
        axes = range(indices.ndim)
        if columns and _by_counting((mine,), axes, here, batch, columns[k : k + 1]) == (
            axis,
            1,
            1,
        ):
            return here
    return LOST
