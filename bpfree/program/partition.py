"""Sums and convolutions as XLA's partitioner can spread them without an exchange."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from bpfree.program import tags
from bpfree.program.rewriting import rewritten


def rows_merged(fn: Callable[..., Any], rows: int, batch: int) -> Callable[..., Any]:
    """`fn`, a pull, with sums over axes of `rows` and `batch` as sums over their product.

    Both are sharded, one over devices. XLA's partitioner reduces a sum over two sharded
    axes twice, one after the other, and a sum over one axis once.
    """
    return rewritten(fn, partial(_merged, (rows, batch)))


def _merged(sizes, eqn, invals) -> list[Any]:
    """Axes are recognised by their sizes: a mistake costs time, and no number changes."""
    if eqn.primitive is lax.dot_general_p:
        summed, batch = eqn.params["dimension_numbers"]
    elif eqn.primitive is lax.reduce_sum_p:
        summed, batch = (eqn.params["axes"],), ((), ())
    else:
        return tags.bind_eqn(eqn, invals)
    found = _find(sizes, invals, summed)
    if found is None or batch[0]:
        return tags.bind_eqn(eqn, invals)
    places = list(zip(*found, strict=True))  # of rows and batch, in each input
    kept = tuple(
        tuple(a - (a > row) for a in axes if a != row)
        for (row, _), axes in zip(places, summed, strict=True)
    )
    named = {"axes": kept[0]} if len(kept) == 1 else {"dimension_numbers": (kept, batch)}
    merged = [_collapse(x, *place) for x, place in zip(invals, places, strict=True)]
    return [eqn.primitive.bind(*merged, **eqn.params | named)]


def _find(sizes, invals, summed):
    """The summed axes of these sizes, each as its places in all inputs, or None."""
    together = list(zip(*summed, strict=True))
    found = []
    for size in sizes:
        of_size = [t for t in together if invals[0].shape[t[0]] == size]
        found += [t for t in of_size if t not in found][:1]
    return found if len(found) == len(sizes) else None


def _collapse(x, row: int, batch: int):
    """One axis for two, in the place of the second; rows change more slowly."""
    order = [axis for axis in range(x.ndim) if axis != row]
    place = order.index(batch)
    order.insert(place, row)
    return lax.collapse(x.transpose(order), place, place + 2)


def samples_inside(eqn, invals) -> list[Any]:
    """One equation; the samples of a convolution come after its batch, not before.

    `vmap` of a convolution makes one axis of samples and batch, samples in front. Where
    the batch is sharded no device has a piece of that axis, and the partitioner gathers
    the whole batch on all of them. Samples after the batch leave each piece in place.
    """
    if eqn.primitive is not lax.conv_general_dilated_p:
        return tags.bind_eqn(eqn, invals)

    @jax.custom_batching.custom_vmap
    def conv(x, kernel):
        return tags.bind_eqn(eqn, [x, kernel])[0]

    @conv.def_vmap
    def of_samples(size, batched, x, kernel):
        if batched != [True, False]:
            axes = tuple(0 if b else None for b in batched)
            return jax.vmap(lambda *a: tags.bind_eqn(eqn, a)[0], axes)(x, kernel), True
        numbers = eqn.params["dimension_numbers"]
        before, after = numbers.lhs_spec[0], numbers.out_spec[0]
        x = lax.collapse(jnp.moveaxis(x, 0, before + 1), before, before + 2)
        y = tags.bind_eqn(eqn, [x, kernel])[0]
        y = y.reshape(*y.shape[:after], -1, size, *y.shape[after + 1 :])
        return jnp.moveaxis(y, after + 1, 0), True

    return [conv(*invals)]


DEVICES = "bpfree.devices"
"""Name of the axis of a `vmap` over devices."""


def kernels_apart(mesh: Mesh | AbstractMesh, axis: Any) -> Callable[..., list[Any]]:
    """A rule for equations under a `vmap` over devices, whose axis is `DEVICES`.

    Where samples have kernels of their own, `vmap` makes a convolution with groups, whose
    inputs the partitioner gathers; here every device convolves its own rows.
    """

    def bind(eqn, invals):
        # Convolutions that samples share (see `columns`) have a rule of their own.
        shared = eqn.primitive.name == "custom_vmap_call" and len(eqn.outvars) == 1
        if not shared and eqn.primitive is not lax.conv_general_dilated_p:
            return tags.bind_eqn(eqn, invals)
        conv = _apart(lambda *args: tags.bind_eqn(eqn, args)[0], mesh, axis)
        return [conv(lax.axis_index(DEVICES), *invals)]

    return bind


def _apart(function: Callable[..., Any], mesh: Any, axis: Any) -> Callable[..., Any]:
    """`function` of (input, kernel, ...), after the number of a device: that alone says
    which of the `vmap`s around us is the one over devices."""

    @jax.custom_batching.custom_vmap
    def one(device, *args):
        return function(*args)

    @one.def_vmap
    def rule(size, batched, device, *args):
        axes = tuple(0 if b else None for b in batched[1:])
        many = jax.vmap(function, axes)
        if not batched[0]:
            return _apart(many, mesh, axis)(device, *args), True
        if not any(batched[1:]):  # the same on all devices
            return function(*args), False
        if not any(batched[2:]):
            return many(*args), True
        names = {axis} if isinstance(axis, str) else set(axis)
        rows = tuple(PartitionSpec(axis if b else None) for b in batched[1:])
        own = jax.shard_map(
            many,
            mesh=mesh,
            in_specs=rows,
            out_specs=PartitionSpec(axis),
            axis_names=names,
            check_vma=False,
        )
        return own(*args), True

    return one
