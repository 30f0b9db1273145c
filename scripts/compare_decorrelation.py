r"""Decorrelation against tuned backprop: steps and seconds to the same training loss.

    OPENBLAS_NUM_THREADS=1 BPFREE_DATA_DIR=... python scripts/compare_decorrelation.py
    OPENBLAS_NUM_THREADS=1 BPFREE_DATA_DIR=... python scripts/compare_decorrelation.py \
        --net=mlp
    OPENBLAS_NUM_THREADS=1 python scripts/compare_decorrelation.py --time

(Threads of SciPy's OpenBLAS, which JAX calls on CPU, spin beside XLA's otherwise.)

Each arm is Adam behind backprop: on raw, standardised or ZCA-whitened inputs, and with
decorrelation of the input layer, of the hidden layers, or of all. The learning rate is
the one of the grid with the lowest final loss at seed 0; an arm whose choice is at the
grid's edge is marked. `--arms="backprop=4e-3,foof=4e-3"` gives rates instead. Then fresh
seeds (`--seeds=0`: none): per seed, the target is the best loss of standardised backprop
in that many steps, and `steps` is the first look that is there, as a share of the step at
which backprop was. Loss is that of the first 1,000 training examples, looked at every
`--look` steps.
`--time` measures steps in turn, in one process. `--results=FILE` keeps the table of
either.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records

import bpfree
from bpfree import decorrelation
from bpfree.data import images
from bpfree.models import mlp, resnet, vgg


class Arm(NamedTuple):
    """Preprocessing of the inputs; which layers are decorrelated; options, or None."""

    preprocess: str
    layers: str = "all"
    options: dict[str, Any] | None = None


def _dbp(every=1, **options):
    wrapper = {"every": every, "cap": 256, "block": None}
    return {"rule": decorrelation.dbp(**options), **wrapper}


def _direct(rule, every=10, **options):
    return {"rule": getattr(decorrelation, rule)(**options), "every": every}


STANDARD = "standardise"
ARMS = {
    "backprop raw": Arm("none"),
    "backprop": Arm(STANDARD),
    "backprop zca": Arm("zca"),
    "default raw": Arm("none", "all", {}),
    "default": Arm(STANDARD, "all", {}),
    "default input": Arm(STANDARD, "input", {}),
    "default hidden": Arm(STANDARD, "hidden", {}),
    "default zca": Arm("zca", "all", {}),
    "dbp": Arm(STANDARD, "all", _dbp()),
    "dbp input": Arm(STANDARD, "input", _dbp()),
    "dbp hidden": Arm(STANDARD, "hidden", _dbp()),
    "dbp every 10": Arm(STANDARD, "all", _dbp(10)),
    "dbp every 10 blocks": Arm(STANDARD, "all", {**_dbp(10), "block": 256}),
    "dbp preserve": Arm(STANDARD, "all", _dbp(preserve=True)),
    "copi": Arm(STANDARD, "all", _dbp(kappa=0.0)),
    "gain": Arm(STANDARD, "all", {**_dbp(), "rule": decorrelation.gain()}),
    "foof": Arm(STANDARD, "all", _direct("foof")),
    "foof every 20": Arm(STANDARD, "all", _direct("foof", 20)),
    "foof every 20 quarter": Arm(
        STANDARD, "all", {**_direct("foof", 20), "fraction": 0.25}
    ),
    "foof 0.01": Arm(STANDARD, "all", _direct("foof", damping=0.01)),
    "foof 0.3": Arm(STANDARD, "all", _direct("foof", damping=0.3)),
    "foof 1": Arm(STANDARD, "all", _direct("foof", damping=1.0)),
    "foof wide": Arm(STANDARD, "all", {**_direct("foof"), "block": None}),
    "foof channels": Arm(STANDARD, "all", {**_direct("foof"), "channel_only": True}),
    "foof early": Arm(STANDARD, "all", {**_direct("foof"), "until": 60}),
    "whiten": Arm(STANDARD, "all", _direct("whiten")),
    "whiten every 20": Arm(STANDARD, "all", _direct("whiten", 20)),
    "whiten 0.01": Arm(STANDARD, "all", _direct("whiten", damping=0.01)),
    "whiten 0.3": Arm(STANDARD, "all", _direct("whiten", damping=0.3)),
    "whiten schulz": Arm(STANDARD, "all", _direct("whiten", method="newton_schulz")),
}
NETS = {
    "convnet": lambda classes: vgg.Model(classes),
    "resnet": lambda classes: resnet.Model(classes, width=16, norm="none"),
    "mlp": lambda classes: mlp.Model(classes, hidden=(512, 512)),
}
LOSS = optax.softmax_cross_entropy_with_integer_labels


class Setting(NamedTuple):
    """What all arms share."""

    model: Any
    batch_size: int
    steps: int
    look: int
    name: str


class Curve(NamedTuple):
    """Steps of the looks, losses there, and the test accuracy at the end."""

    steps: np.ndarray
    losses: np.ndarray
    accuracy: float


class Program(NamedTuple):
    """The compiled parts of a run; the learning rate is part of the state."""

    init: Callable[..., Any]
    step: Callable[..., Any]
    loss: Callable[..., Any]
    accuracy: Callable[..., Any]


def program(setting: Setting, arm: Arm, batch) -> Program:
    model = setting.model
    loss_fn = bpfree.supervised(model, LOSS)
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)

    def with_layers(params):
        if arm.options is None:
            return adam
        kernels = list(decorrelation.find_layers(loss_fn, params, batch))
        parts = {"all": kernels, "input": kernels[:1], "hidden": kernels[1:]}
        return bpfree.decorrelate(
            adam,
            loss_fn,
            example_batch=batch,
            layers=parts[arm.layers],
            **arm.options,
        )

    def init(seed):
        params = model.init(jax.random.key(seed), batch["x"])["params"]
        return params, with_layers(params).init(params)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(lambda p: loss_fn(p, batch).mean())(params)
        updates, state = with_layers(params).update(gradient, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    def loss(params, batch):
        return LOSS(model.apply({"params": params}, batch["x"]), batch["label"]).mean()

    def accuracy(params, batch):
        logits = model.apply({"params": params}, batch["x"])
        return (logits.argmax(-1) == batch["label"]).mean()

    return Program(jax.jit(init), jax.jit(step), jax.jit(loss), jax.jit(accuracy))


def set_rate(carry, rate: float):
    params, state = carry
    inner = state.inner if hasattr(state, "inner") else state
    inner.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
    return params, state


def run(setting: Setting, made: Program, data, rate: float, seed: int) -> Curve:
    """Train once; batches are those of the seed, whatever the arm."""
    rng = np.random.default_rng(seed)
    carry = set_rate(made.init(seed), rate)
    probe = {k: v[:1000] for k, v in data.train.items()}
    losses, size = [], len(data.train["label"])
    for count in range(setting.steps + 1):
        if count % setting.look == 0:
            losses.append(float(made.loss(carry[0], probe)))
        rows = rng.integers(0, size, setting.batch_size)
        carry = made.step(carry, {k: v[rows] for k, v in data.train.items()})
    looks = np.arange(len(losses)) * setting.look
    test = {k: v[:5000] for k, v in data.test.items()}
    return Curve(looks, np.array(losses), float(made.accuracy(carry[0], test)))


def reached(curve: Curve, target: float) -> float:
    """The first look with a loss at the target; infinite if none."""
    below = np.flatnonzero(curve.losses <= target)
    return float(curve.steps[below[0]]) if len(below) else float("inf")


def seconds_per_step(setting, programs, batches, rounds: int = 7, cycle: int = 20):
    """{arm: median CPU and wall seconds of a step}; all arms in turn, whole cycles."""
    carries = {name: made.init(0) for name, made in programs.items()}
    found = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, made in programs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(cycle):
                carries[name] = made.step(carries[name], batches[name])
            jax.block_until_ready(carries[name])
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                found[name].append([s / cycle for s in spent])
    return {name: np.median(times, axis=0) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", choices=NETS, default="convnet")
    parser.add_argument("--data", default="")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rates", default="1e-3,2e-3,4e-3,8e-3,16e-3")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--look", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--rounds", type=int, default=7, help="of --time")
    parser.add_argument("--results", default="", help="where to write the table")
    args = parser.parse_args()
    dense = args.net == "mlp"
    name = args.data or ("fashion_mnist" if dense else "cifar10_jpeg")
    steps = args.steps or (1200 if dense else 250)
    look = args.look or (20 if dense else 5)
    setting = Setting(NETS[args.net](10), args.batch, steps, look, name)
    given = {
        arm: rate for arm, _, rate in (a.partition("=") for a in args.arms.split(","))
    }
    chosen = {arm: ARMS[arm] for arm in given}
    print(json.dumps(vars(args)), jax.__version__, jax.devices()[0].device_kind)
    if args.time:
        shape = (28, 28, 1) if dense else (32, 32, 3)
        return show_times(setting, chosen, shape, args)
    load = cache(lambda kind: images.load(name, preprocess=kind))
    first = {
        arm: {k: v[: args.batch] for k, v in load(a.preprocess).train.items()}
        for arm, a in chosen.items()
    }
    programs = {arm: program(setting, a, first[arm]) for arm, a in chosen.items()}
    compare(setting, chosen, given, programs, load, args)


def show_times(setting: Setting, chosen, shape, args) -> None:
    """On random images: their content is nothing to the clock."""
    rng = np.random.default_rng(0)
    size = setting.batch_size
    images = rng.normal(size=(size, *shape)).astype(np.float32)
    batch = {"x": images, "label": np.arange(size) % 10}
    programs = {arm: program(setting, a, batch) for arm, a in chosen.items()}
    batches = dict.fromkeys(programs, batch)
    times = seconds_per_step(setting, programs, batches, args.rounds)
    base, rows = next(iter(times.values())), {}
    for arm, t in times.items():
        cpu, wall = (float(ratio) for ratio in t / base)
        milliseconds = {"cpu_ms": 1e3 * float(t[0]), "wall_ms": 1e3 * float(t[1])}
        rows[arm] = {"cpu": cpu, "wall": wall, **milliseconds}
        print(arm, rows[arm], flush=True)
    if args.results:
        records.write(args.results, [], rows)


def choose_rate(setting: Setting, made: Program, data, arm: str, rates) -> float:
    """The rate of the grid with the lowest final loss at seed 0."""
    ends = [run(setting, made, data, rate, 0).losses[-5:].mean() for rate in rates]
    best = int(np.nanargmin(ends))
    edge = " (edge of the grid)" if best in (0, len(rates) - 1) else ""
    grid = ", ".join(f"{r:g}: {e:.4f}" for r, e in zip(rates, ends, strict=True))
    print(f"{arm:16} rate {rates[best]:g}{edge}   {grid}", flush=True)
    return rates[best]


def compare(setting: Setting, chosen, given, programs, load, args) -> None:
    rates = [float(r) for r in args.rates.split(",")]
    picked = {
        arm: float(given[arm])
        if given[arm]
        else choose_rate(setting, programs[arm], load(a.preprocess), arm, rates)
        for arm, a in chosen.items()
    }
    seeds, rows = list(range(1, args.seeds + 1)), {}
    targets: list[Curve] = []
    for arm in sorted(chosen, key=lambda n: n != "backprop") if seeds else ():
        data = load(chosen[arm].preprocess)
        curves = [run(setting, programs[arm], data, picked[arm], s) for s in seeds]
        targets = targets or curves
        rows[arm] = row(picked[arm], curves, targets)
        print(arm, rows[arm], flush=True)
        if args.results:
            records.write(args.results, seeds, rows)


def row(rate: float, curves: list[Curve], targets: list[Curve]) -> dict[str, Any]:
    """`steps`: to the target's best loss, as a share of its own; null for never."""
    shares = [
        reached(c, t.losses.min()) / t.steps[t.losses.argmin()]
        for c, t in zip(curves, targets, strict=True)
    ]
    return {
        "rate": rate,
        "steps": [round(float(s), 4) if np.isfinite(s) else None for s in shares],
        **records.spread("loss", [c.losses[-5:].mean() for c in curves]),
        **records.spread("accuracy", [c.accuracy for c in curves]),
    }


if __name__ == "__main__":
    main()
