"""Learned feedback with and without its correction, along training runs.

    BPFREE_DATA_DIR=... python scripts/unbiased_feedback.py [--nets=mlp,convnet]
        [--results=results/unbiased_feedback.json]

Arms: "prediction" (shrinkage 0, one noisy pass); "unbiased" (shrinkage 1, as many noisy
passes as `--cost` inferences allow); "James-Stein" (the same passes, and the shrinkage of
each parameter by `james_stein`); "backprop". The learning rate of each arm is the best of
`--learning_rates` on validation, on a seed of its own; then seeds 0, 1, ... are run, and
at each look `bpfree.diagnostics` compares estimates on one batch, with the predictor as
it is then, with autodiff.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import arms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
import trainer
from absl import app, flags

import bpfree
from bpfree.data import digits, images
from bpfree.models import convnet, mlp
from bpfree.training import steps

NETS = flags.DEFINE_list("nets", ["mlp", "convnet"], "rows of MODELS in this script")
COST = flags.DEFINE_float("cost", 8, "inferences that a step may cost")
STEPS = flags.DEFINE_integer("steps", 1000, "updates")
LOOKS = flags.DEFINE_list("looks", ["100", "300", "1000"], "steps before a look")
REPEATS = flags.DEFINE_integer("repeats", 32, "independent estimates at a look")
BATCH = flags.DEFINE_integer("batch", 64, "examples in a step")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each arm")
SIGMA = flags.DEFINE_float("sigma", 0.002, "scale of the noise")
RATES = flags.DEFINE_list("learning_rates", ["1e-3", "3e-3", "1e-2"], "the grid")
RESULTS = flags.DEFINE_string("results", "", "where to write the rows, if anywhere")
SEARCH_SEED = 1000

MODELS: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "mlp": (
        "MLP 784-128-128-10, Fashion-MNIST",
        partial(images.load, name="fashion_mnist"),
        mlp.Model(hidden=(128, 128), num_classes=10),
    ),
    "convnet": (
        "convnet of 16 and 32 channels, digits",
        digits.load,
        convnet.Model(channels=(16, 32), num_classes=10, image=(8, 8, 1)),
    ),
}


class Net(NamedTuple):
    """A model with its data, on the device, and its loss function."""

    model: Any
    data: Any
    loss_fn: Callable[..., Any]


class Shrunk(NamedTuple):
    """The biased and the unbiased estimator, and running products of the correction."""

    parts: tuple[Any, Any]
    last: Any
    product: Any  # of successive corrections, for each parameter
    square: Any


def james_stein(biased, unbiased, decay=0.98):
    """g + lambda u, with u the correction and lambda = <u_t, u_t-1> / |u|^2, per leaf.

    The noise of two steps is independent, so the numerator is |bias|^2 on average, and
    the ratio the shrinkage of least mean squared error; both are running means of steps
    before this one.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        scalars = jax.tree.map(lambda _: jnp.float32(0), params)
        parts = biased.init(params), unbiased.init(params)
        return Shrunk(parts, zeros, scalars, scalars)

    def update(updates, state, params, **extra):
        (g, one), (whole, two) = (
            tx.update(updates, s, params, **extra)
            for tx, s in zip((biased, unbiased), state.parts, strict=True)
        )
        u = optax.tree.sub(whole, g)
        shrunk = jax.tree.map(
            lambda g, u, p, s: g + jnp.clip(p / jnp.maximum(s, 1e-30), 0, 1) * u,
            *(g, u, state.product, state.square),
        )
        mean = lambda old, a, b: decay * old + (1 - decay) * jnp.vdot(a, b)  # noqa: E731
        product = jax.tree.map(mean, state.product, u, state.last)
        square = jax.tree.map(mean, state.square, u, u)
        return shrunk, Shrunk((one, two), u, product, square)

    return optax.GradientTransformationExtraArgs(init, update)


def estimators(net: Net, example, params):
    """arm -> seed -> transformation; and the noisy passes and cost of "unbiased"."""
    # The correction pays for the noisy passes, and their responses come with them.
    options = {"sigma": SIGMA.value, "teacher": "responses"}
    feedback = partial(bpfree.learned_feedback, **options)
    arm = arms.Arm(partial(feedback, shrinkage=1.0))
    make, samples = arms.at_cost(arm, COST.value, net.loss_fn, params, example)

    def learned(shrinkage, count, seed):
        kwargs = {"shrinkage": shrinkage, "num_samples": count, "seed": seed}
        return feedback(net.loss_fn, example_batch=example, **kwargs)

    made = {
        "prediction": partial(learned, 0.0, 1),
        "unbiased": partial(learned, 1.0, samples),
        "James-Stein": lambda seed: james_stein(
            *(learned(shrinkage, samples, seed) for shrinkage in (0.0, 1.0))
        ),
        "backprop": lambda seed: bpfree.backprop(net.loss_fn, seed=seed),
    }
    return made, samples, bpfree.diagnostics.cost(make, params, example)


def run(net: Net, make, looks, seed, rate):
    """[(params, opt_state) at every look], and validation and test accuracy."""
    keys = steps.make_keys(seed)
    example = jax.tree.map(lambda a: a[: BATCH.value], net.data.train)
    params, model_state = steps.init_variables(net.model, keys.init, example)
    tx = optax.chain(make(keys.estimator), trainer.adam(rate, STEPS.value))
    train = net.data.train
    sizes = train["label"].shape[0], BATCH.value
    rows = steps.batch_order(keys.order, jnp.int32(0), STEPS.value, *sizes)

    def step(carry, rows):
        batch = jax.tree.map(lambda a: a[rows], train)
        updates, state = tx.update(None, carry[1], carry[0], batch=batch)
        return (optax.apply_updates(carry[0], updates), state), ()

    carry, seen = (params, tx.init(params)), []
    for start, end in pairwise([0, *looks]):
        carry, _ = jax.lax.scan(step, carry, rows[start:end])
        seen.append((carry[0], carry[1][0]))
    measure = trainer.measure(net.model)
    parts = (net.data.validation, net.data.test)
    return seen, [measure(carry[0], model_state, p)["accuracy"] for p in parts]


def compare(name: str) -> dict:
    text, load, model = MODELS[name]
    data = trainer.on_device(load())
    loss = optax.softmax_cross_entropy_with_integer_labels
    net = Net(model, data, bpfree.supervised(model, loss))
    example = jax.tree.map(lambda a: jnp.asarray(a[: BATCH.value]), data.train)
    shapes = trainer.shapes(model, example)
    made, samples, cost = estimators(net, example, shapes)
    rates = np.asarray(list(map(float, RATES.value)), np.float32)
    looks = list(map(int, LOOKS.value))
    meters = {
        arm: bpfree.diagnostics.make_meter(
            made[arm](0), shapes, example, repeats=REPEATS.value
        )
        for arm in ("prediction", "unbiased")
    }
    rows = {}
    for arm, make in made.items():
        compiled = jax.jit(jax.vmap(partial(run, net, make, looks)))
        _, (chosen, _) = compiled(np.full(len(rates), SEARCH_SEED), rates)
        rate = float(trainer.best(RATES.value, chosen))
        seen, (_, test) = compiled(np.arange(SEEDS.value), np.full(SEEDS.value, rate))
        row = {"samples": samples if arm in ("unbiased", "James-Stein") else 1}
        row |= {"rate": rate} | records.spread("accuracy", test)
        rows[f"{text}: {arm}"] = row | ({"cost": cost} if arm == "unbiased" else {})
        print(text, arm, row, flush=True)
        if arm == "prediction":
            rows |= along(text, meters, zip(looks, seen, strict=True), example)
    return rows


def along(text, meters, looks, example) -> dict:
    """Both estimates at each look of the runs, with the same predictor."""
    rows = {}
    mine = lambda tree, i: jax.tree.map(lambda a: a[i], tree)  # noqa: E731
    for look, (params, state) in looks:
        for arm, meter in meters.items():
            found = [
                meter(mine(params, i), example, seed=i, state=mine(state, i)).overall
                for i in range(SEEDS.value)
            ]
            row = {}
            for name in ("cosine", "slope", "variance", "bias_squared"):
                row |= records.spread(name, [getattr(a, name) for a in found])
            rows[f"{text}, {look} steps: {arm}"] = row
    return rows


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    rows = {}
    for name in NETS.value:
        rows |= compare(name)
        if RESULTS.value:
            records.write(RESULTS.value, list(range(SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
