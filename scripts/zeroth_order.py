"""Better use of zeroth-order gradients, at equal cost: the rows that were tried.

    BPFREE_DATA_DIR=... python scripts/zeroth_order.py [--tried="wp rank 1: Adam"]

The MLP, data, steps and other flags of `scripts/compare_training.py`. Each arm is an
estimator, an optimiser behind it and a grid of four learning rates, each twice the one
before: the best on validation, on a seed of its own, is the one with which the seeds 0,
1, ... are run. Cost counts the products of the estimator and those of the optimiser.
Arms that a result file has already, and which are not tried again, stay in it.

Arms of weight noise of rank 1: Adam (the baseline); standardised losses and momentum
(FZOO); smaller noise on the last layer; `partial_orthogonal` below. Arms of layer-wise
node noise: equal samples for each node, and samples by measured variance and cost, K_l
~ sqrt(variance_l / cost_l).
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import compare_training
import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
import trainer
from absl import app, flags

import bpfree
from bpfree.diagnostics import products
from bpfree.training import steps

TRIED = flags.DEFINE_list("tried", [], "arms of this script; none: all")
LAST = 0.35  # noise of the last layer's matrix, in that of the others


class LowRankState(NamedTuple):
    """Momentum {leaf}, second moment {leaf: ()}, right factors {leaf: (n, r)}."""

    count: jax.Array
    momentum: Any
    square: Any
    right: Any


def partial_orthogonal(
    decay: float = 0.99,
    rank: int = 8,
    feedback: float = 0.05,
    decay_square: float = 0.999,
) -> optax.GradientTransformation:
    """The leading singular directions of the momentum, all at one size.

    With g over its rms (a number for each matrix), one step of subspace iteration, and
    (m, n) the shape, turned so that m >= n:

        M <- decay M + (1 - decay) g,   P = orth(M Q),   R = M^T P,   Q <- R / |R_j|
        update = sqrt(m n / r) P Q^T,   M <- M - feedback P R^T

    What was used is taken out of the momentum in part, so that weak directions come up.
    Vectors take their momentum over their rms. An orthogonalised spectrum of all
    directions would raise the noise of the estimate to the size of the signal.
    """

    def init(params):
        keys = optax.tree.split_key_like(jax.random.key(0), params)
        right = lambda key, p: jax.random.normal(key, (min(p.shape), rank))  # noqa: E731
        return LowRankState(
            jnp.int32(0),
            optax.tree.zeros_like(params),
            jax.tree.map(lambda p: jnp.float32(0), params),
            jax.tree.map(lambda k, p: right(k, p) if p.ndim == 2 else (), keys, params),
        )

    def matrix(momentum, right):
        if momentum.ndim != 2:
            return momentum, right, momentum
        turned = momentum.shape[0] < momentum.shape[1]
        tall = momentum.T if turned else momentum
        left = _orthonormal(tall @ right)
        scaled = tall.T @ left
        right = scaled / jnp.maximum(jnp.linalg.norm(scaled, axis=0), 1e-20)
        update = jnp.sqrt(tall.size / right.shape[1]) * left @ right.T
        kept = tall - feedback * left @ scaled.T
        return (update.T, right, kept.T) if turned else (update, right, kept)

    def update(gradient, state, params=None):
        count = state.count + 1
        mean = lambda v, g: decay_square * v + (1 - decay_square) * (g**2).mean()  # noqa: E731
        square = jax.tree.map(mean, state.square, gradient)
        rms = jax.tree.map(lambda v: jnp.sqrt(v / (1 - decay_square**count)), square)
        moved = lambda m, g, r: decay * m + (1 - decay) * g / (r + 1e-10)  # noqa: E731
        momentum = jax.tree.map(moved, state.momentum, gradient, rms)
        leaves, tree = jax.tree.flatten(momentum)
        found = map(matrix, leaves, tree.flatten_up_to(state.right))
        updates, right, kept = (tree.unflatten(x) for x in zip(*found, strict=True))
        return updates, LowRankState(count, kept, square, right)

    return optax.GradientTransformation(init, update)


def _orthonormal(a):
    """An orthonormal basis of the columns of (m, r), by the Gram matrix (r, r)."""
    gram = a.T @ a
    floor = 1e-6 * jnp.trace(gram) / len(gram) + 1e-30
    lower = jnp.linalg.cholesky(gram + floor * jnp.eye(len(gram)))
    return jax.scipy.linalg.solve_triangular(lower, a.T, lower=True).T


class Arm(NamedTuple):
    """(loss_fn, seed) -> estimator; what stands before the schedule; the first rate."""

    estimator: Callable[..., Any]
    optimiser: Callable[[], optax.GradientTransformation]
    rate: float


def rank_1(samples: int, **options) -> Callable[..., Any]:
    options = {"num_samples": samples, "rank": 1, "sigma": 1e-3, **options}
    return lambda loss_fn, seed: bpfree.weight_perturbation(loss_fn, seed=seed, **options)


def layerwise(samples) -> Callable[..., Any]:
    return lambda loss_fn, seed: bpfree.node_perturbation(
        loss_fn, num_samples=samples, sigma=0.01, layerwise=True, seed=seed
    )


def less_at_the_end(samples: int) -> Callable[..., Any]:
    """Rank-1 noise whose last matrix has LAST of it: it perturbs and divides by it."""

    def scaled(params, power):
        last = max(params)
        kernel = params[last]["kernel"] * LAST**power
        return {**params, last: {**params[last], "kernel": kernel}}

    def make(loss_fn, seed):
        inner = rank_1(samples)(lambda p, batch: loss_fn(scaled(p, 1), batch), seed)

        def update(updates, state, params=None, **extra):
            found, state = inner.update(None, state, scaled(params, -1), **extra)
            return scaled(found, -1), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return make


BY_VARIANCE = {"Dense_0": 38, "Dense_1": 110, "Dense_2": 128}
STANDARD = {"baseline": "standardise"}

ARMS = {
    "wp rank 1: Adam": Arm(rank_1(46), optax.scale_by_adam, 1e-3),
    "wp rank 1: Adam of b1 .98 and b2 .99": Arm(
        rank_1(46), partial(optax.scale_by_adam, b1=0.98, b2=0.99), 1e-3
    ),
    "wp rank 1: standardised losses and momentum": Arm(
        rank_1(46, **STANDARD), partial(optax.trace, 0.9), 1e-6
    ),
    "wp rank 1: partial orthogonalisation": Arm(rank_1(44), partial_orthogonal, 5e-4),
    "wp rank 1: .35 of the noise on the last matrix": Arm(
        less_at_the_end(46), optax.scale_by_adam, 1e-3
    ),
    "np layerwise: Adam": Arm(layerwise(43), optax.scale_by_adam, 5e-4),
    "np layerwise: samples by variance and cost": Arm(
        layerwise(BY_VARIANCE), optax.scale_by_adam, 5e-4
    ),
}


def spent(arm: Arm, loss_fn, model, data) -> float:
    """Products of a step, the optimiser's included, in inferences of the batch."""
    size = compare_training.BATCH.value
    example = jax.tree.map(lambda a: jnp.asarray(a[:size]), data.train)
    params = steps.init_variables(model, jax.random.key(0), example)[0]
    estimator, optimiser = arm.estimator(loss_fn, 0), arm.optimiser()

    def step(params, batch):
        found, _ = estimator.update(None, estimator.init(params), params, batch=batch)
        return optimiser.update(found, optimiser.init(params), params)[0]

    return products(step, params, example) / products(loss_fn, params, example)


def compiled(arm: Arm, loss_fn, model, data):
    """`(seeds, rates) -> [validation, test accuracies]`, vmapped."""
    count = compare_training.STEPS.value
    data, measure = trainer.on_device(data), trainer.measure(model)
    schedule = optax.cosine_decay_schedule(1.0, count)

    def run(seed, rate):
        ends = optax.scale_by_schedule(schedule), optax.scale(-rate)
        state = trainer.train(
            lambda key: arm.estimator(loss_fn, key),
            model,
            data,
            seed,
            rate,
            batch_size=compare_training.BATCH.value,
            num_steps=count,
            wrap=lambda adam: optax.chain(arm.optimiser(), *ends),
        )
        parts = (data.validation, data.test)
        seen = [measure(state.params, state.model_state, part) for part in parts]
        return [s["accuracy"] for s in seen]

    return jax.jit(jax.vmap(run))


def compare(name: str, loss_fn, model, data) -> dict[str, float]:
    arm, seeds = ARMS[name], np.arange(compare_training.SEEDS.value)
    rates = np.float32(arm.rate) * 2 ** np.arange(4, dtype=np.float32)
    run = compiled(arm, loss_fn, model, data)
    chosen = np.nan_to_num(run(np.full(4, compare_training.SEARCH_SEED), rates)[0])
    rate = rates[int(chosen.argmax())]
    test = np.asarray(run(seeds, np.full(len(seeds), rate))[1])
    cost = spent(arm, loss_fn, model, data)
    row = {"cost": cost, "rate": float(rate), "validation": float(chosen.max())}
    row |= records.spread("accuracy", test)
    print(name, row, chosen, flush=True)
    return row


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    data = compare_training.load()
    model = compare_training.make_model(data.num_classes)
    loss_fn = bpfree.supervised(model, optax.softmax_cross_entropy_with_integer_labels)
    names = TRIED.value or ARMS
    path = compare_training.RESULTS.value
    rows = json.loads(Path(path).read_text())["rows"] if Path(path).is_file() else {}
    for name in names:
        rows[name] = compare(name, loss_fn, model, data)
        if path:
            records.write(path, list(range(compare_training.SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
