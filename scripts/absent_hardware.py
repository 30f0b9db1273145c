"""What updates cost on accelerators that are not here, next to inference: one table.

    python scripts/absent_hardware.py --target=h100:8
    python scripts/absent_hardware.py --target=tpu:v5e:2x4 --programs="rank 1"

Compiles one step (estimator and Adam) of an MLP, width x 3 + 1000, in bfloat16 with
float32 parameters for each program, samples spread over all devices, and prints the
reports of `bpfree.hardware`. Inference is that of the samples that one device draws,
eight batches side by side. Needs Python 3.12 and the extra `tpu` or `cuda`.
"""

import argparse
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import bpfree
from bpfree import hardware

SIDE_BY_SIDE = 8  # batches of inference at once
PROGRAMS: dict[str, Any] = {
    "backprop": lambda loss, n, sharding, batch: bpfree.backprop(loss),
    "node perturbation": lambda loss, n, sharding, batch: bpfree.node_perturbation(
        loss, num_samples=n, sharding=sharding
    ),
    "likelihood ratio": lambda loss, n, sharding, batch: bpfree.likelihood_ratio(
        loss, num_samples=n, sigma=0.05, pairing="clean", sharding=sharding
    ),
    "shared normals": lambda loss, n, sharding, batch: bpfree.likelihood_ratio(
        loss,
        num_samples=n,
        sigma=0.05,
        pairing="clean",
        noise="shared_gaussian",
        sharding=sharding,
    ),
    "rank 1": lambda loss, n, sharding, batch: bpfree.weight_perturbation(
        loss, num_samples=n, rank=1, sharding=sharding
    ),
    "dense signs": lambda loss, n, sharding, batch: bpfree.weight_perturbation(
        loss, num_samples=n, sharding=sharding
    ),
    "forward gradient": lambda loss, n, sharding, batch: bpfree.forward_gradient(
        loss, num_samples=n, sharding=sharding
    ),
    "learned feedback": lambda loss, n, sharding, batch: bpfree.learned_feedback(
        loss, num_samples=sharding.num_devices, sharding=sharding, example_batch=batch
    ),
}


class Step(NamedTuple):
    """A program: `run(params, state, batch)`, the shapes of its arguments, and how many
    times it processes the batch on each device."""

    run: Any
    args: tuple
    passes: int


def steps(
    mesh: Mesh, width: int, batch_size: int, samples: int, programs: Iterable[str]
) -> tuple[Step, dict[str, Step]]:
    """(inference of eight batches on one device, {program: one step}) on a mesh with the
    axis `sample`, so many samples on each of its devices."""
    whole, spread = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("sample",)))

    def shape(tree, sharding=whole):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
        )

    sizes = [width] * 3 + [1000]
    layers = [part for n in sizes for part in (nn.Dense(n, dtype=jnp.bfloat16), nn.relu)]
    net = nn.Sequential(layers[:-1])
    x = jax.ShapeDtypeStruct((batch_size, width), jnp.bfloat16)
    label = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = shape({"x": x, "label": label})
    params = shape(jax.eval_shape(net.init, jax.random.key(0), x)["params"])
    loss = bpfree.supervised(net, optax.softmax_cross_entropy_with_integer_labels)
    many = jax.ShapeDtypeStruct((SIDE_BY_SIDE * batch_size, width), jnp.bfloat16)
    run = jax.jit(lambda params, x: net.apply({"params": params}, x))
    inference = Step(run, (shape(params, None), many), SIDE_BY_SIDE)

    def of(name):
        estimator = PROGRAMS[name](loss, samples * mesh.size, spread, batch)
        tx = optax.chain(estimator, optax.adam(1e-3))

        def step(params, state, batch):
            updates, state = tx.update(None, state, params, batch=batch)
            return optax.apply_updates(params, updates), state

        args = (params, shape(jax.eval_shape(tx.init, params)), batch)
        passes = {"backprop": 1, "learned feedback": 1}.get(name, samples)
        return Step(jax.jit(step, donate_argnums=(0, 1)), args, passes)

    return inference, {name: of(name) for name in programs}


def reports(target: str, *sizes: Any) -> dict[str, hardware.Report]:
    """{program: report of one step}; `sizes` as in `steps`."""
    mesh = hardware.mesh(target, sample=hardware.find(target).size)
    inference, programs = steps(mesh, *sizes)
    seconds = hardware.report(inference.run, inference.args, target).step_seconds

    def of(step):
        share = seconds and seconds * step.passes / inference.passes
        return hardware.report(step.run, step.args, target, inference=share)

    return {name: of(step) for name, step in programs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="h100:8 or tpu:v5e:2x4, say")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--samples", type=int, default=256, help="on each device")
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    hardware.targets.stay_on_cpu(hardware.find(args.target))
    names = args.programs.split(",")
    found = reports(args.target, args.width, args.batch, args.samples, names)
    print(hardware.table(found))


if __name__ == "__main__":
    main()
