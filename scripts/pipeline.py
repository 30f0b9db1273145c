"""Layers on the devices of a mesh, with nothing running back: the collectives counted.

    python scripts/pipeline.py [--width=64 --batch=64 --parts=8 --samples=8]

Eight equal layers stand on eight virtual CPU devices, the axis `stage` of a mesh. A batch
goes through in parts: at tick t device s holds part t - s, and one ppermute passes the
activations on. Every device then needs its own clean inputs, its own noise and the losses
(one psum) for its weight gradient; backprop's error signals go all the way back. Loops
are unrolled for the count, so that each collective in the program runs once.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

import bpfree

AXIS = "stage"


def pipelined(unroll: bool = False) -> Callable:
    """The loss function that every device of the axis evaluates under `shard_map`.

    Returns `({"w": (1, n, n)}, {"x", "t": (parts, m, n)}) -> losses (m, parts)`: the
    device's own layer, and the whole batch. The losses are the same on all devices, but
    typed as different: the noise of every device is its own.
    """

    def loss_fn(params, batch):
        stage, stages = lax.axis_index(AXIS), lax.axis_size(AXIS)
        parts = len(batch["x"])

        def tick(arrived, t):
            x = jnp.where(stage == 0, batch["x"][jnp.minimum(t, parts - 1)], arrived)
            x = jnp.where((stage <= t) & (t < stage + parts), x, 0)
            h = jnp.tanh(bpfree.node(x @ params["w"][0], "y"))
            return lax.ppermute(h, AXIS, [(s, s + 1) for s in range(stages - 1)]), h

        start = lax.pcast(jnp.zeros_like(batch["x"][0]), AXIS, to="varying")
        ticks = jnp.arange(parts + stages - 1, dtype=jnp.int32)
        _, hs = lax.scan(tick, start, ticks, unroll=len(ticks) if unroll else 1)
        losses = ((hs[stages - 1 :] - batch["t"]) ** 2).sum(2).T
        last = lax.psum(jnp.where(stage == stages - 1, losses, 0), AXIS)
        return lax.pcast(last, AXIS, to="varying")

    return loss_fn


def own_part(centred: jax.Array, node) -> jax.Array:
    """Credit rule: the noise of tick t on device s answers for part t - s alone."""
    parts = centred.shape[2]
    part = jnp.arange(node.shape[0], dtype=jnp.int32) - lax.axis_index(AXIS)
    busy = (part >= 0) & (part < parts)
    mine = jnp.where(busy, centred[:, :, jnp.clip(part, 0, parts - 1)], 0)
    return mine.swapaxes(1, 2)[..., None]


def on_stages(function: Callable, mesh: Mesh) -> Callable:
    """`function(params, batch, *more)` on every device, with its layer and its `more`."""

    def placed(params, batch, *more):
        mine = PartitionSpec(AXIS)
        specs = (mine, PartitionSpec(), *[mine] * len(more))
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=mine)(
            params, batch, *more
        )

    return jax.jit(placed)


def update(loss_fn, **options) -> Callable:
    """`(params, batch, key (1,)) -> gradient` by node perturbation."""

    def run(params, batch, keys):
        tx = bpfree.node_perturbation(loss_fn, credit=own_part, **options)
        return tx.estimator.estimate(keys[0], params, batch, tx.init(params)).gradient

    return run


def summed(loss_fn) -> Callable:
    """The loss function with one loss per place in a part, (m,)."""
    return lambda params, batch: loss_fn(params, batch).sum(1)


def forward(loss_fn) -> Callable:
    """`(params, batch) -> {node: y}` of a clean pass."""
    return lambda params, batch: bpfree.record(summed(loss_fn))(params, batch)[1]


def pull(loss_fn) -> Callable:
    """`(params, batch, {node: signal}) -> gradient`: a clean pass, and the pull."""

    def run(params, batch, signals):
        return bpfree.pullback(summed(loss_fn))(params, batch)[2](signals)

    return run


def backprop(loss_fn) -> Callable:
    """`(params, batch) -> gradient`; the loss is one number on all devices."""

    def run(params, batch):
        mean = lambda p: lax.pmean(loss_fn(p, batch).sum(1).mean(), AXIS)  # noqa: E731
        return jax.grad(mean)(params)

    return run


def collectives(compiled) -> Counter:
    """How often each collective stands in a compiled program."""
    found = re.findall(r" (all-[a-z-]+|collective-[a-z-]+)\(", compiled.as_text())
    return Counter(name.removesuffix("-start") for name in found if "-done" not in name)


def problem(stages: int, width: int, batch: int, parts: int, dtype=jnp.float32):
    """(mesh, params, batch)"""
    mesh = jax.make_mesh((stages,), (AXIS,), axis_types=(AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (stages, width, width), dtype) / width**0.5
    shape = (parts, batch // parts, width)
    x, t = (jax.random.normal(key, shape, dtype) for key in keys[1:])
    return mesh, {"w": w}, {"x": x, "t": jnp.tanh(t)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.stages)
    mesh, params, batch = problem(args.stages, args.width, args.batch, args.parts)
    loss_fn = pipelined(unroll=True)
    keys = jax.random.split(jax.random.key(1), args.stages)
    options = {"num_samples": args.samples, "chunk_size": args.samples}
    record = on_stages(forward(loss_fn), mesh)
    signals = jax.eval_shape(record, params, batch)
    programs = {
        "clean pass": (record, ()),
        "clean pass and pull": (on_stages(pull(loss_fn), mesh), (signals,)),
        "node perturbation": (on_stages(update(loss_fn, **options), mesh), (keys,)),
        "backprop": (on_stages(backprop(loss_fn), mesh), ()),
    }
    ticks = args.parts + args.stages - 1
    print(
        f"jax {jax.__version__}, {args.stages} stages, {args.parts} parts: {ticks} ticks"
    )
    for name, (program, more) in programs.items():
        found = collectives(program.lower(params, batch, *more).compile())
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(found.items()))
        print(f"{name:20} {counts}")


if __name__ == "__main__":
    main()
