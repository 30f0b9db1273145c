"""What a training step costs each of 1 to 4,096 devices: a model, and the compiled truth.

    python scripts/scaling.py --config=configs/digits.py --samples=64 --batch=128

A step of the clean pairing with S samples on a mesh of s x d devices (axes `sample` and
`data`) costs each device

    flops    C / d + S N / (s d) + U
    bytes    P, if d > 1, else min(P, G), if s > 1

that it hands to all-reduces: gradients, once over both axes; over `sample` alone
gradients or signals, whichever are smaller. C is the clean pass and the pull of all
examples, N one noisy pass of them, U the update, P the bytes of the parameters, G the
bytes of the signals. C + U and N are read off two programs of one device, and U is
counted as four operations a parameter. The programs are compiled for up to eight virtual
CPU devices; the loop over samples runs once in each, because XLA counts its body once.
"""

import argparse
import re
import runpy
from typing import NamedTuple

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import numpy as np  # noqa: E402

from bpfree.training import config, job, mesh, steps  # noqa: E402

MESHES = [
    "",
    *(f"{axis}:{n}" for n in (2, 4, 8) for axis in ("data", "sample")),
    "sample:2,data:2",
    "sample:4,data:2",
    "sample:2,data:4",
]
FAR = ["data:8", "sample:8,data:8", "sample:16,data:32", "sample:64,data:64"]


class Cost(NamedTuple):
    """Of one step on one device."""

    flops: float
    reduced: float
    memory: float


def compiled(made: dict, text: str, batch: int):
    """The job and the program of one training step on a mesh."""
    ready = job.prepare(config.read({**made, "mesh": text}))
    devices = ready.task.mesh
    state = steps.init_state(ready.task, ready.params, ready.model_state)
    here = mesh.columns(devices, batch)
    first = {k: v[None, here] for k, v in steps.without_state(ready.batch).items()}

    def step(state, batch):
        batch_of = lambda i: {k: v[i] for k, v in batch.items()}  # noqa: E731
        return steps.count_steps(ready.task, state, 1, batch_of)

    arguments = mesh.put(devices, state), mesh.assemble(devices, batch, first)
    return ready, steps.lowered(step, *arguments).compile()


def cost(program) -> Cost:
    text = program.as_text()
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in text, exchange
    lines = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    shapes = [s for line in lines for s in re.findall(r"f32\[([\d,]*)\]", line)]
    reduced = 4 * sum(np.prod([int(n) for n in s.split(",") if n]) for s in shapes)
    memory = program.memory_analysis().temp_size_in_bytes
    return Cost(program.cost_analysis()["flops"], reduced, memory)


def row(*cells) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


class Model(NamedTuple):
    """The letters of the module's docstring."""

    clean: float
    noisy: float
    update: float
    parameters: float
    signals: float
    samples: int

    def flops(self, s: int, d: int) -> float:
        noisy = self.samples * self.noisy / (s * d)
        return self.clean / d + noisy + self.update

    def reduced(self, s: int, d: int) -> float:
        if d > 1:
            return self.parameters
        return min(self.parameters, self.signals) * (s > 1)


def measured(make, samples: int, batch: int) -> Model:
    ready, all_of_them = compiled(make(samples), "", batch)
    whole, half = (
        cost(all_of_them).flops,
        cost(compiled(make(samples // 2), "", batch)[1]),
    )
    noisy = (whole - half.flops) / (samples // 2)
    size = sum(p.size for p in jax.tree.leaves(ready.params))
    nodes = [p.shape[-1] for p in jax.tree.leaves(ready.params) if p.ndim == 1]
    update = 4 * size
    clean = whole - samples * noisy - update
    return Model(clean, noisy, update, 4 * size, 4 * batch * sum(nodes), samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    path, _, arg = args.config.partition(":")
    get_config = runpy.run_path(path)["get_config"]

    def make(samples: int) -> dict:
        made = config.plain(get_config(arg))
        counts = {"num_samples": samples, "chunk_size": samples}
        return made | {"estimator": made["estimator"] | counts, "batch_size": args.batch}

    model = measured(make, args.samples, args.batch)
    print(f"jax {jax.__version__}, {args.config}, S={args.samples}, B={args.batch}")
    print(f"C={model.clean:.4g} N={model.noisy:.4g} U={model.update:.3g} flops")
    print(f"P={model.parameters:.4g} G={model.signals:.4g} bytes\n")
    print("| mesh | Mflop, model | compiled | kB reduced, model | compiled | temp MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for text in MESHES:
        axes = {"sample": 1, "data": 1} | mesh.parse(text)
        s, d = axes["sample"], axes["data"]
        found = cost(compiled(make(args.samples), text, args.batch)[1])
        flops, sent = model.flops(s, d), model.reduced(s, d)
        row(
            text or "one",
            f"{flops / 1e6:.2f}",
            f"{found.flops / 1e6:.2f} ({found.flops / flops:.3f})",
            f"{sent / 1e3:.1f}",
            f"{found.reduced / 1e3:.1f}",
            f"{found.memory / 1e6:.2f}",
        )
    print("\nsamples and batch grown with their axes:\n")
    row("mesh", "devices", "Mflop each", "noisy share", "kB reduced", "flop/byte")
    row(*["---"] * 6)
    for text in ["data:1", *FAR]:
        axes = {"sample": 1, "data": 1} | mesh.parse(text)
        s, d = axes["sample"], axes["data"]
        grown = model._replace(
            clean=model.clean * d,
            noisy=model.noisy * d,
            signals=model.signals * d,
            samples=model.samples * s,
        )
        flops, sent = grown.flops(s, d), grown.reduced(s, d)
        noisy = grown.samples * grown.noisy / (s * d) / flops
        ratio = f"{flops / sent:.0f}" if sent else ""
        row(text, s * d, f"{flops / 1e6:.2f}", f"{noisy:.3f}", f"{sent / 1e3:.1f}", ratio)


if __name__ == "__main__":
    main()
