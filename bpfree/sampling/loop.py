"""The one loop over draws, in time and over devices.

It changes time, memory and rounding of an estimate, never what is drawn.
"""

import operator
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from bpfree.program import devices, interpreter, tags
from bpfree.program.convolutions import canonical, of_convolutions
from bpfree.program.partition import DEVICES, kernels_apart, samples_inside
from bpfree.program.rewriting import rewritten, traced
from bpfree.program.side_by_side import in_turn, or_in_turn, side_by_side
from bpfree.program.trace import Program
from bpfree.sampling.noise import Plan


class Layout(NamedTuple):
    """How the draws of one estimate are laid out in time and over devices.

    Attributes:
      num_draws: draws in all.
      chunk: draws evaluated side by side on each device, if it has as many.
      sharding: NamedSharding whose first axis shards the draws, or None.
      sequential: evaluate sample after sample, with no `vmap` (chunk_size=1).
      apart: leave the sums of the devices unadded, in front: (devices, ...).
    """

    num_draws: int
    chunk: int
    sharding: NamedSharding | None = None
    sequential: bool = False
    apart: bool = False

    @property
    def devices(self) -> int:
        if self.sharding is None:
            return 1
        return devices.count(self.sharding)

    @property
    def mesh_size(self) -> int:
        """Devices on all axes of the mesh, those of the batch included."""
        return 1 if self.sharding is None else self.sharding.mesh.size


def sum_over_draws(chunk_fn: Callable[[jax.Array], tuple[Any, Any]], layout: Layout):
    """Sum one result of `chunk_fn(indices)` over all draws, and stack another.

    Args:
      chunk_fn: `(c,)` draw indices -> (tree to add up, tree of `(c, ...)` to stack).
      layout: `num_draws`, `chunk` and `sharding`; it changes time, memory and rounding,
        never the draws. Devices keep their own partial sums, which meet once, at the end,
        or are returned with `apart`.

    Returns: (sums, stacked), the latter `(num_draws, ...)` in order of the index.
    """
    spread = layout.sharding is not None
    rows = (layout.devices,) if spread else ()
    run = on_devices(layout, chunk_fn) if spread else chunk_fn
    chunk = min(layout.chunk, layout.num_draws // layout.devices)
    full, rest = divmod(layout.num_draws, layout.devices * chunk)
    indices = jnp.arange(layout.num_draws)
    head = indices[: layout.num_draws - rest].reshape(full, *rows, chunk)

    def trace(indices):
        """(chunk_fn, shapes of its sums) for chunks like this one; traced once."""
        one, (added, _) = traced(run, (indices,), canonical, of_convolutions)
        return one, added

    def adding(one):
        def body(sums, indices):
            added, stacked = one(indices)
            return jax.tree.map(jnp.add, sums, added), stacked

        return body

    flat = lambda a, axes: a.reshape(-1, *a.shape[axes + len(rows) :])  # noqa: E731
    one, added = trace(head[0])
    if full == 1:  # the program of a loop that turns once is larger
        sums, stacked = one(head[0])
        parts = [jax.tree.map(lambda a: flat(a, 1), stacked)]
    else:
        sums, stacked = lax.scan(adding(one), jax.tree.map(tags.zeros, added), head)
        parts = [jax.tree.map(lambda a: flat(a, 2), stacked)]
    if rest:
        last = indices[-rest:].reshape(*rows, -1)
        sums, stacked = adding(trace(last)[0])(sums, last)
        parts.append(jax.tree.map(lambda a: flat(a, 1), stacked))
    sums = sum_over_devices(sums) if spread and not layout.apart else sums
    return sums, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def mean_of(sums: Any, count) -> Any:
    """What `sum_over_draws` adds up, over the count of what was added."""
    count = jnp.asarray(1.0 * count)
    return jax.tree.map(lambda total: _quotient(total, count), sums)


_quotient = jax.jit(jnp.divide)  # one function in the program for all sums of a shape


def sum_over_devices(sums: Any) -> Any:
    """The sum over devices of what `sum_over_draws` returns with `apart`."""
    return jax.tree.map(lambda a: a.sum(0), sums)


def over_samples(layout: Layout, evaluate: Callable) -> Callable:
    """`evaluate` with a leading axis of samples on its arguments and results.

    Side by side, or one after another: a program with ordered effects has no `vmap`.
    """
    return in_turn(evaluate) if layout.sequential else side_by_side(evaluate)


def in_chunks(layout: Layout, function: Callable) -> Callable:
    """`function` of a tree, with an axis of draws in front, a chunk of them at a time."""

    def run(tree):
        if len(jax.tree.leaves(tree)[0]) <= layout.chunk:
            return side_by_side(function)(tree)
        chunked = partial(lax.map, function, batch_size=layout.chunk)
        return or_in_turn(chunked, function)(tree)

    return run


def on_devices(layout: Layout, function: Callable) -> Callable:
    """`function` of a tree, with an axis of devices in front of all leaves."""
    assert layout.sharding is not None
    axis = layout.sharding.spec[0]
    rows = partial(devices.spread, layout.sharding)

    def run(tree):
        each = jax.vmap(function, axis_name=DEVICES, spmd_axis_name=axis)
        out = each(jax.tree.map(rows, tree))
        return jax.tree.map(rows, out)

    return run


def copies(layout: Layout, function: Callable) -> Callable:
    """`function` of a tree on every device: rows of one result, in front of all leaves.

    The barrier hides that rows are equal: XLA would add up their cotangents first, which
    is a reduction of its own.
    """
    run = on_devices(layout, lambda tree: function(lax.optimization_barrier(tree)))
    return lambda tree: run(
        jax.tree.map(lambda a: jnp.broadcast_to(a, (layout.devices, *a.shape)), tree)
    )


def own_kernels(layout: Layout, function: Callable) -> Callable:
    """`function` for `sum_over_draws`, where each sample has kernels of its own.

    `vmap` over such samples makes a convolution with groups, whose inputs the partitioner
    would gather on every device. Here every device convolves its own samples only.
    """
    if layout.devices == 1:
        return function
    assert layout.sharding is not None
    bind = kernels_apart(layout.sharding.mesh, layout.sharding.spec[0])
    return rewritten(function, bind, of_convolutions)


def laid_out(program: Program, layout: Layout, moved: Collection[str]) -> Program:
    """The program of noisy passes, whose convolutions do not gather a sharded batch.

    For this, `partition.samples_inside` binds the equations that noise reaches. The rest
    has no axis of samples and is bound as it stands, because what `samples_inside` makes
    of an equation without samples has no derivative.

    Args:
      moved: names of the nodes with noise.
    """
    if layout.sequential or layout.mesh_size == layout.devices:  # no further axis
        return program
    noisy = interpreter.downstream(
        program.jaxpr, program.sites, lambda s: s.name in moved
    )

    def bind(eqn, invals):
        inside = id(eqn) in noisy
        return (samples_inside if inside else tags.bind_eqn)(eqn, invals)

    return program._replace(bind=bind)


def make_layout(
    plan: Plan,
    num_samples: int,
    chunk_size: int | None,
    sharding: NamedSharding | None,
) -> Layout:
    """Check the counts of an estimate and lay it out.

    Raises ValueError when num_samples is not a positive multiple of the plan's group, or
    its draws do not divide over the devices.
    """
    num_samples = whole_number("num_samples", num_samples)
    if num_samples >= 2**31:
        raise ValueError(f"num_samples={num_samples} must be below 2**31")
    chunk_size = None if chunk_size is None else whole_number("chunk_size", chunk_size)
    if num_samples < 1 or num_samples % plan.group:
        pairs = " (antithetic samples come in pairs)" if plan.group == 2 else ""
        raise ValueError(
            f"num_samples={num_samples} must be a positive multiple of {plan.group}, the "
            f"number of samples in one draw of this plan{pairs}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    if sharding is not None and not all(
        kind == jax.sharding.AxisType.Auto for kind in sharding.mesh.axis_types
    ):
        raise ValueError(
            "sharding needs a mesh whose axes the partitioner may choose layouts on: "
            "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n)"
        )
    if sharding is not None and (not sharding.spec or sharding.spec[0] is None):
        raise ValueError(
            f"the first axis of sharding={sharding.spec} names no axis of the mesh to "
            "spread the samples over; pass NamedSharding(mesh, PartitionSpec('sample'))"
        )
    draws = num_samples // plan.group
    layout = Layout(draws, 1, sharding, sequential=chunk_size == 1)
    if draws % layout.devices:
        raise ValueError(
            f"{draws} draws of {plan.group} samples do not divide over "
            f"{layout.devices} devices; change num_samples or sharding"
        )
    return layout._replace(chunk=max(1, (chunk_size or _DEFAULT_CHUNK) // plan.group))


def whole_number(name: str, value) -> int:
    """The value as an int; ValueError for what is none, such as 2.0."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be a whole number") from None


_DEFAULT_CHUNK = 8
