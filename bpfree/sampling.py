"""Perturbation plans, and the one loop over samples.

A plan draws perturbations as a function of (key, draw index, node) and of nothing else:
not of the chunk size, the device count or the order of calls. One draw yields a small
*group* of coupled samples (an antithetic pair, say), so sample k is member k mod G of
draw k // G. Noise has mean 0 and covariance the identity, is made where it is used, and
is never stored.
"""

import math
import operator
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from bpfree import _jaxpr
from bpfree._jaxpr import Site
from bpfree._partition import samples_inside
from bpfree.program import NodeTree, Program, name_hash

_WORD = 32  # signs in one random word


class Plan(NamedTuple):
    """How to perturb a node.

    Attributes:
      group: samples in one draw, G.
      draw: `(key, shape, batch_axis) -> (G, *shape)`, float32.
      score: noise -> minus the derivative of its log density, or None where the noise
        has no density (then only the clean pairing is an estimator).
    """

    group: int
    draw: Callable[[jax.Array, tuple[int, ...], int | None], jax.Array]
    score: Callable[[jax.Array], jax.Array] | None


def gaussian(share: int = 1) -> Plan:
    """Standard normal noise; `share` samples have magnitudes in common.

    Each sample is `sign * |g|` with its own independent signs. For share > 1 the
    magnitudes |g| are drawn once for `share` samples. Every sample is then still exactly
    normal and independent samples are uncorrelated, so all estimators keep their
    expectation; only the fourth moments couple. It saves (1 - 1/share) of the normals.
    """

    def draw(key, shape, batch_axis):
        if share == 1:
            return _once(jax.random.normal(key, (1, *shape), jnp.float32))
        magnitude_key, sign_key = jax.random.split(key)
        magnitude = _once(jax.random.normal(magnitude_key, shape, jnp.float32))

        def one(key):
            return packed_signs(key, shape, batch_axis) * magnitude

        return jax.vmap(one)(jax.random.split(sign_key, share))

    return Plan(share, draw, score=lambda noise: noise)


def rademacher() -> Plan:
    """Independent signs, 32 to a random word (SPSA directions); they have no density."""

    def draw(key, shape, batch_axis):
        return packed_signs(key, shape, batch_axis)[None]

    return Plan(1, draw, score=None)


def antithetic(plan: Plan) -> Plan:
    """Each sample of `plan` and its negative, for the same example."""

    def draw(key, shape, batch_axis):
        noise = plan.draw(key, shape, batch_axis)
        return jnp.concatenate([noise, -noise])

    return Plan(2 * plan.group, draw, plan.score)


def packed_signs(
    key: jax.Array, shape: tuple[int, ...], batch_axis: int | None = None
) -> jax.Array:
    """Random +-1 of `shape`, float32, from one random word per 32 signs.

    Words are packed within an example, so that a sharded batch axis draws locally.
    """
    rows = 1 if batch_axis is None else shape[batch_axis]
    rest = [n for axis, n in enumerate(shape) if axis != batch_axis]
    width = math.prod(rest)
    words = _once(jax.random.bits(key, (rows, -(-width // _WORD)), jnp.uint32))
    places = jnp.arange(_WORD, dtype=jnp.uint32).reshape(1, 1, -1)
    top_bit = (words[..., None] >> places) << (_WORD - 1)
    one = jnp.uint32(0x3F800000)  # float32 1.0, whose top bit is the sign
    signs = lax.bitcast_convert_type(top_bit | one, jnp.float32)
    signs = signs.reshape(rows, -1)[:, :width]
    if batch_axis is None:
        return signs.reshape(shape)
    return jnp.moveaxis(signs.reshape(rows, *rest), 0, batch_axis)


def _once(random: jax.Array) -> jax.Array:
    """Keeps XLA from fusing the generator into every reader, each hashing again."""
    return lax.optimization_barrier(random)


def draw_noise(
    plan: Plan, key: jax.Array, index: jax.Array, nodes: tuple[Site, ...]
) -> NodeTree:
    """Noise of draw `index` for every node: {name: (G, *node shape)}."""
    draw_key = jax.random.fold_in(key, index)
    return {
        s.name: plan.draw(
            jax.random.fold_in(draw_key, name_hash(s.name)), s.shape, s.batch_axis
        )
        for s in nodes
    }


def draw_chunk(
    plan: Plan, key: jax.Array, indices: jax.Array, nodes: tuple[Site, ...]
) -> NodeTree:
    """Noise of a chunk of draws, samples in front: {name: (c * G, *node shape)}."""
    noise = jax.vmap(lambda index: draw_noise(plan, key, index, nodes))(indices)
    return jax.tree.map(lambda z: z.reshape(-1, *z.shape[2:]), noise)


def beside(weights: jax.Array, ndim: int, batch_axis: int | None) -> jax.Array:
    """The weights with `ndim` axes, to stand beside values (K, *node shape).

    Args:
      weights: (K, B), one per sample and example; (K,) for one loss per batch.
      ndim: of the values.
      batch_axis: of the node; None for a value shared by the batch, which is weighted
        with the sum over examples.
    """
    shape = [1] * ndim
    shape[0] = weights.shape[0]
    if weights.ndim == 2 and batch_axis is None:
        weights = weights.sum(1)
    elif weights.ndim == 2 and batch_axis is not None:
        shape[1 + batch_axis] = weights.shape[1]
    return weights.reshape(shape)


def per_sample(weights: jax.Array, values: jax.Array, batch_axis: int | None):
    """weights[k, b] * values[k, ..., b, ...]: every sample's values times its weight."""
    return beside(weights, values.ndim, batch_axis) * values


def credit(weights: jax.Array, values: jax.Array, batch_axis: int | None):
    """`per_sample(...).sum(0)`."""
    return weighted_sum(beside(weights, values.ndim, batch_axis), values)


def weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """`(weights * values).sum(0)` as one product, batched over the axes of the weights.

    A dot, because XLA on CPU runs the multiply-and-sum 2-3 times slower (BUILD_NOTES).

    Args:
      weights: (K, ...), with as many axes as the values, and size 1 where it broadcasts.
      values: (K, *node shape).
    """
    own = [axis for axis in range(1, values.ndim) if weights.shape[axis] != 1]
    weights = weights.reshape(weights.shape[0], *(weights.shape[axis] for axis in own))
    batch = (list(range(1, weights.ndim)), own)
    total = lax.dot_general(weights, values, (([0], [0]), batch), lax.Precision.HIGHEST)
    return jnp.moveaxis(total, range(len(own)), [axis - 1 for axis in own])


# ---------------------------------------------------------------------------- the loop


class Layout(NamedTuple):
    """How the draws of one estimate are laid out in time and over devices.

    Attributes:
      num_draws: draws in all.
      chunk: draws evaluated side by side on each device.
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
        axes = self.sharding.spec[0]
        names = (axes,) if isinstance(axes, str) else axes
        return math.prod(self.sharding.mesh.shape[name] for name in names)

    @property
    def mesh_size(self) -> int:
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
    devices = layout.devices
    run = _rows_of(layout, chunk_fn)
    full, rest = divmod(layout.num_draws, devices * layout.chunk)
    indices = jnp.arange(layout.num_draws)
    head = indices[: layout.num_draws - rest].reshape(full, devices, layout.chunk)

    def body(sums, indices):
        added, stacked = run(indices)
        return jax.tree.map(jnp.add, sums, added), stacked

    added, _ = jax.eval_shape(run, head[0])
    sums = jax.tree.map(_jaxpr.zeros, added)
    sums, stacked = lax.scan(body, sums, head)
    parts = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), stacked)]
    if rest:
        sums, last = body(sums, indices[-rest:].reshape(devices, -1))
        parts.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), last))
    sums = sums if layout.apart else total(sums)
    return sums, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def total(sums: Any) -> Any:
    """The sum over devices of what `sum_over_draws` returns with `apart`."""
    return jax.tree.map(lambda a: a.sum(0), sums)


def each(layout: Layout, evaluate: Callable) -> Callable:
    """`evaluate` with a leading axis of samples on its arguments and results.

    Side by side, or one after another: a program with ordered effects has no `vmap`.
    """
    if not layout.sequential:
        return jax.vmap(evaluate)
    return lambda *samples: lax.map(lambda sample: evaluate(*sample), samples)


def _rows_of(layout: Layout, chunk_fn):
    """`chunk_fn` on (devices, c) indices, one row and one partial sum per device."""
    if layout.sharding is None:
        return lambda indices: jax.tree.map(lambda a: a[None], chunk_fn(indices[0]))
    return on_devices(layout, chunk_fn)


def on_devices(layout: Layout, function: Callable) -> Callable:
    """`function` of a tree, with an axis of devices in front of all leaves."""
    assert layout.sharding is not None
    axis = layout.sharding.spec[0]

    def rows(a):
        # Only the first axis is ours: naming the others would gather a sharded batch.
        others = [PartitionSpec.UNCONSTRAINED] * (a.ndim - 1)
        sharding = NamedSharding(layout.sharding.mesh, PartitionSpec(axis, *others))
        return lax.with_sharding_constraint(a, sharding)

    def run(tree):
        out = jax.vmap(function, spmd_axis_name=axis)(jax.tree.map(rows, tree))
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


def laid_out(program: Program, layout: Layout, moved: Collection[str]) -> Program:
    """The program of noisy passes, their samples where a sharded batch is not gathered.

    Only what noise reaches has samples; the rest is bound as it stands, because what
    `samples_inside` makes of an equation without samples has no derivative.

    Args:
      moved: names of the nodes with noise.
    """
    if layout.sequential or layout.mesh_size == layout.devices:  # no further axis
        return program
    noisy = _jaxpr.behind(program.jaxpr, program.sites, lambda s: s.name in moved)

    def bind(eqn, invals):
        inside = id(eqn) in noisy
        return (samples_inside if inside else _jaxpr.bind_eqn)(eqn, invals)

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
    num_samples = whole("num_samples", num_samples)
    chunk_size = None if chunk_size is None else whole("chunk_size", chunk_size)
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
    local = draws // layout.devices
    wanted = (chunk_size or _DEFAULT_CHUNK) // plan.group
    return layout._replace(chunk=max(1, min(local, wanted)))


def whole(name: str, value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r} must be a whole number") from None


_DEFAULT_CHUNK = 8
