"""Equilibrium propagation with scaled feedback and backprop train the same nets.

    BPFREE_DATA_DIR=... python scripts/compare_energies.py --problem=mnist

Every arm starts from the same weights and sees the same batches, with Adam and a cosine
to zero. Each gets the rate of `--rates` that is best on the validation set after
`--search` epochs of a seed of its own; then the seeds 0, 1, ... are run, the arms in turn
epoch by epoch, so that their seconds can be compared. An arm's row is of its best epoch
on the validation set: test accuracy there, and CPU seconds of training until then.
`steps`: CPU time of an update over backprop's. `backprop` is the feed-forward net of the
same shape; the others are relaxed, in training and when they are evaluated.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
from absl import app, flags
from benchmark_ep import FeedForward

import bpfree
from bpfree import equilibrium as eq
from bpfree.data import images
from bpfree.models import hopfield

PROBLEM = flags.DEFINE_string("problem", "mnist", "mnist, deep or cifar10")
RATES = flags.DEFINE_list("rates", ["3e-4", "1e-3", "3e-3", "1e-2"], "the grid")
EPOCHS = flags.DEFINE_integer("epochs", 0, "of a run; 0: the problem's")
SEARCH = flags.DEFINE_integer("search", 2, "epochs of a run that chooses the rate")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each arm")
NAMES = flags.DEFINE_list("arms", [], "arms of the problem; none: all")
RESULTS = flags.DEFINE_string("results", "", "where to write the rows as JSON")
SEARCH_SEED = 1000


class Relaxed(NamedTuple):
    """An arm that relaxes: feedback, |beta| of centred nudging, sweeps; those of the
    evaluation, at most (it stops at an error of 1e-3)."""

    feedback: float
    beta: float
    free: int
    nudged: int
    evaluated: int = 100


class Problem(NamedTuple):
    data: str
    preprocess: str
    net: dict[str, Any]
    epochs: int
    examples: int  # of the training set
    tested: int  # of the test set; half as many of the validation set, or all it has
    batch: int
    arms: dict[str, Relaxed | None]


PROBLEMS = {
    "mnist": Problem(
        "mnist",
        "none",
        {"hidden": (512, 512), "activation": "relu"},
        10,
        60_000,
        10_000,
        128,
        {"backprop": None, "feedback 0.01": Relaxed(0.01, 0.5, 2, 1)},
    ),
    "deep": Problem(
        "mnist",
        "none",
        {"hidden": (128,) * 10, "activation": "relu"},
        5,
        20_000,
        10_000,
        128,
        {
            "backprop": None,
            "feedback 0.25": Relaxed(0.25, 1.0, 2, 2, evaluated=2),
            "feedback 1": Relaxed(1.0, 1.0, 2, 2, evaluated=2),
        },
    ),
    "cifar10": Problem(
        "cifar10_jpeg",
        "standardise",
        {"hidden": (), "channels": (32, 64, 128, 128), "activation": "relu"},
        1,
        10_000,
        2_000,
        64,
        {"backprop": None, "feedback 0.1": Relaxed(0.1, 0.5, 1, 1)},
    ),
}


class Arm(NamedTuple):
    """`init(key, x)`, an estimator, and `predict(params, x) -> classes`."""

    init: Callable[..., Any]
    tx: optax.GradientTransformationExtraArgs
    step: Callable[..., Any]
    predict: Callable[..., jax.Array]


def make_arm(problem: Problem, settings: Relaxed | None) -> Arm:
    if settings is None:
        model = hopfield.Model(10, **problem.net)
        twin = FeedForward(
            tuple(problem.net.get("channels", ())),
            problem.net["hidden"],
        )
        cost = optax.softmax_cross_entropy_with_integer_labels
        estimator = bpfree.backprop(bpfree.supervised(twin, cost))
        logits = lambda params, x: twin.apply({"params": params}, x)  # noqa: E731
    else:
        net = {"feedback": settings.feedback, "sweeps": settings.evaluated}
        model = hopfield.Model(10, **net, **problem.net)
        few = eq.Relaxation(settings.free, settings.nudged, factor=1.0, tolerance=None)
        estimator = bpfree.equilibrium_propagation(
            model.objective(), nudging=eq.centred(settings.beta), relaxation=few
        )
        logits = lambda params, x: model.apply({"params": params}, x)  # noqa: E731
    tx = optax.chain(estimator, optax.scale_by_adam())

    def step(params, state, train, rows, rate):
        batch = {name: train[name][rows] for name in ("x", "label")}
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = tx.update(zeros, state, params, batch=batch)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    predict = jax.jit(lambda params, x: logits(params, x).argmax(1))
    return Arm(model.init, tx, jax.jit(step), predict)


class Run:
    """A training run that goes on for one epoch at a time; the rate falls on a cosine."""

    def __init__(self, arm: Arm, batch: int, data, seed: int, rate: float, epochs: int):
        self.arm, self.data = arm, data
        self.per_epoch = len(data.train["label"]) // batch
        steps = np.arange(epochs * self.per_epoch) / (epochs * self.per_epoch)
        self.rates = iter(np.float32(rate * (1 + np.cos(np.pi * steps)) / 2))
        example = jnp.asarray(data.train["x"][:batch])
        self.params = arm.init(jax.random.key(seed), example)["params"]
        self.state = arm.tx.init(self.params)
        self.rng = np.random.default_rng(seed)
        self.seconds, self.batch = 0.0, batch
        self._advance(jnp.arange(batch), np.float32(0))  # compiled before it is timed

    def _advance(self, rows, rate):
        new = self.arm.step(self.params, self.state, self.data.train, rows, rate)
        return jax.block_until_ready(new)

    def epoch(self) -> None:
        order = self.rng.permutation(len(self.data.train["label"]))
        rows = order[: self.per_epoch * self.batch].reshape(-1, self.batch)
        start = time.process_time()
        for chosen in jnp.asarray(rows):
            self.params, self.state = self._advance(chosen, next(self.rates))
        self.seconds += time.process_time() - start

    def accuracy(self, part) -> float:
        right = [
            (self.arm.predict(self.params, x) == label).mean()
            for x, label in zip(
                np.split(part["x"], 10), np.split(part["label"], 10), strict=True
            )
        ]
        return float(np.mean(np.asarray(right, np.float64)))


def load(problem: Problem):
    """The data, cut to what the problem uses; the training part on the device."""
    data = images.load(name=problem.data, preprocess=problem.preprocess)

    def first(part, count):
        return {name: a[:count] for name, a in part.items()}

    return data._replace(
        train=jax.tree.map(jnp.asarray, first(data.train, problem.examples)),
        validation=first(data.validation, problem.tested // 2),
        test=first(data.test, problem.tested),
    )


def choose_rate(name: str, arm: Arm, batch: int, data) -> float:
    rates, found = list(map(float, RATES.value)), {}
    if len(rates) == 1:
        return rates[0]
    for rate in rates:
        run = Run(arm, batch, data, SEARCH_SEED, rate, SEARCH.value)
        for _ in range(SEARCH.value):
            run.epoch()
        found[rate] = run.accuracy(data.validation)
    print(name, "validation for each rate", found, flush=True)
    return max(found, key=found.__getitem__)


def train(runs: dict[str, Run], seed: int, epochs: int):
    """{arm: (best validation, test there, seconds until then, seconds of all)}."""
    best = dict.fromkeys(runs, (-1.0, 0.0, 0.0))
    for epoch in range(epochs):
        for name, run in runs.items():
            run.epoch()
            found = run.accuracy(run.data.validation)
            if found > best[name][0]:
                best[name] = (found, run.accuracy(run.data.test), run.seconds)
            print(seed, epoch, name, found, *best[name], flush=True)
    return {name: (*best[name], run.seconds) for name, run in runs.items()}


def row(name: str, rate: float, seeds: list[dict]) -> dict[str, Any]:
    """Means over seeds, and the ratios to backprop's seconds of the same seeds."""
    ours, theirs = (np.asarray([s[n] for s in seeds]) for n in (name, "backprop"))
    spread = float(ours[:, 1].std(ddof=1)) if len(seeds) > 1 else 0.0
    return {
        "rate": rate,
        "accuracy": float(ours[:, 1].mean()),
        "accuracy_std": spread,
        "each": [round(float(a), 4) for a in ours[:, 1]],
        "seconds": float(ours[:, 2].mean()),
        "ratio": float(ours[:, 2].sum() / theirs[:, 2].sum()),
        "steps": float(ours[:, 3].sum() / theirs[:, 3].sum()),
    }


def main(argv) -> None:
    if len(argv) > 1 or PROBLEM.value not in PROBLEMS:
        raise app.UsageError(f"--problem is one of {sorted(PROBLEMS)}; {argv[1:]}")
    problem = PROBLEMS[PROBLEM.value]
    data, epochs = load(problem), EPOCHS.value or problem.epochs
    names = NAMES.value or list(problem.arms)
    arms = {name: make_arm(problem, problem.arms[name]) for name in names}
    rates = {n: choose_rate(n, arm, problem.batch, data) for n, arm in arms.items()}
    done: list[dict] = []
    for seed in range(SEEDS.value):
        runs = {
            name: Run(arm, problem.batch, data, seed, rates[name], epochs)
            for name, arm in arms.items()
        }
        done.append(train(runs, seed, epochs))
        rows = {name: row(name, rates[name], done) for name in arms}
        for name, found in rows.items():
            print(name, found, flush=True)
        if RESULTS.value:
            records.write(RESULTS.value, list(range(len(done))), rows)


if __name__ == "__main__":
    app.run(main)
