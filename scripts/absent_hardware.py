"""What updates cost on accelerators that are not here, next to inference: one table.

    python scripts/absent_hardware.py --target=h100:8
    python scripts/absent_hardware.py --target=tpu:v5e:2x4 --net=resnet18
        [--programs="rank 1"] [--results=results/absent_resnet18_v5e.json]

Compiles one step (estimator and Adam) of a net of `absent_nets.py` for each program,
samples spread over all devices, and prints the reports of `bpfree.hardware`. Inference
is that of the samples that one device draws, eight batches side by side. A result file
keeps the rows of programs that are not compiled again. Needs Python 3.12 and the extra
`tpu` or `cuda`.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import absent_nets
import jax
import optax
import records
from absent_nets import Net
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import bpfree
from bpfree import hardware

SIDE_BY_SIDE = 8  # batches of inference at once

_likelihood = partial(bpfree.likelihood_ratio, sigma=0.05, pairing="clean")
PROGRAMS: dict[str, Any] = {
    "node perturbation": bpfree.node_perturbation,
    "likelihood ratio": _likelihood,
    "shared normals": partial(_likelihood, noise="shared_gaussian"),
    "rank 1": partial(bpfree.weight_perturbation, rank=1),
    "forward gradient": bpfree.forward_gradient,
    "learned feedback": bpfree.learned_feedback,
    "feedback by responses": partial(bpfree.learned_feedback, teacher="responses"),
    "feedback from half": partial(bpfree.learned_feedback, fit_stride=2),
    "backprop": bpfree.backprop,
    "dense signs": bpfree.weight_perturbation,
}
FEEDBACK = ("learned feedback", "feedback by responses", "feedback from half")
ONE_PASS = ("backprop", *FEEDBACK)  # whatever the number of samples


class Step(NamedTuple):
    """A program: `run(params, state, batch)`, the shapes of its arguments, and how many
    times it processes the batch on each device."""

    run: Any
    args: tuple
    passes: int


def inference(net: Net) -> Step:
    """Of eight batches on one device."""
    rows = SIDE_BY_SIDE * net.x.shape[0]
    many = jax.ShapeDtypeStruct((rows, *net.x.shape[1:]), net.x.dtype)
    return Step(jax.jit(net.apply), (net.params, many), SIDE_BY_SIDE)


def step(name: str, net: Net, mesh: Mesh, samples: int, **options: Any) -> Step:
    """One step of a program on a mesh with the axis `sample`.

    Args:
      samples: of each device.
      options: of the estimator; backprop has none.
    """
    whole, spread = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("sample",)))

    def shape(tree):
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), tree
        )

    batch = shape({"x": net.x, "label": net.label})
    passes = 1 if name in ONE_PASS else samples
    options |= {"num_samples": passes * mesh.size, "sharding": spread}
    options |= {"example_batch": batch} if name in FEEDBACK else {}
    estimator = PROGRAMS[name](net.loss, **({} if name == "backprop" else options))
    tx = optax.chain(estimator, optax.adam(1e-3))

    def run(params, state, batch):
        updates, state = tx.update(None, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    args = (shape(net.params), shape(jax.eval_shape(tx.init, net.params)), batch)
    return Step(jax.jit(run, donate_argnums=(0, 1)), args, passes)


def reports(
    target: str, net: Net, samples: int, programs: Iterable[str], **options: Any
) -> Iterator[tuple[str, hardware.Report]]:
    """(program, report of one step), one after the other; the rest as in `step`."""
    mesh = hardware.mesh(target, sample=hardware.find(target).size)
    plain = inference(net)
    seconds = hardware.report(plain.run, plain.args, target).step_seconds
    for name in programs:
        made = step(name, net, mesh, samples, **options)
        same = seconds and seconds * made.passes / plain.passes
        yield name, hardware.report(made.run, made.args, target, inference=same)


def row(report: hardware.Report) -> dict[str, Any]:
    """The figures of a result file: seconds, bytes, collectives by kind."""
    return {
        "step": report.step_seconds,
        "inference": report.inference,
        "share": report.share_of_inference,
        "seconds": {k: float(f"{v:.4g}") for k, v in report.seconds.items()},
        "memory": sum(report.memory.values()),
        "scratch": report.memory["scratch"],
        "fits": report.fits,
        "kernels": report.kernels,
        "flops": report.flops,
        "bytes": report.bytes,
        "collectives": {k: list(c) for k, c in report.collectives.items()},
        "compiled": report.compile_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="h100:8 or tpu:v5e:2x4, say")
    parser.add_argument("--net", default="mlp", choices=absent_nets.NETS)
    parser.add_argument("--batch", type=int, help="examples; default: the net's own")
    parser.add_argument("--samples", type=int, default=256, help="on each device")
    parser.add_argument("--chunk", type=int, help="samples side by side")
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--results", default="", help="where to write the figures")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    hardware.targets.stay_on_cpu(hardware.find(args.target))
    net = absent_nets.NETS[args.net](**({"batch": args.batch} if args.batch else {}))
    size, batch = net.num_params / 1e6, net.x.shape[0]
    print(f"{args.net}: {size:.1f} million parameters, batch {batch}", flush=True)
    options = {"chunk_size": args.chunk} if args.chunk else {}
    programs, found = args.programs.split(","), {}
    for name, made in reports(args.target, net, args.samples, programs, **options):
        found[name] = made
        print(hardware.table({name: made}), flush=True)
        if args.results:
            keep(args.results, name, row(made))
    print(hardware.table(found))


def keep(path: str, name: str, row: dict[str, Any]) -> None:
    """The row of a program, in place of an older one; the file's other rows stay."""
    file = Path(path)
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    made = {**rows, name: row}
    records.write(path, [], {n: made[n] for n in PROGRAMS if n in made})


if __name__ == "__main__":
    main()
