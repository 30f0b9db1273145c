"""Does it pay to follow `bpfree.diagnostics.recommend`? Five nets on handwritten digits.

    python scripts/recommend.py [--seeds=3] [--budget=16] [--steps=300]
        [--results=results/recommend.json]

Every arm takes as many steps of SGD on batches of 128, at the same cost of a step. The
recommended estimator runs at its recommended rate, both measured once, on the first batch
and at the initial parameters. The default, `node_perturbation(loss_fn)`, runs at every
rate of `--rates`, and the one with the lowest training loss on a seed of its own is
kept: its search costs five runs, the recommendation about one. Training loss over the
last tenth of the steps and validation accuracy, mean and standard deviation over seeds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
from absl import app, flags

import bpfree
from bpfree.data import digits

BUDGET = flags.DEFINE_float("budget", 16, "inferences that a step may cost")
STEPS = flags.DEFINE_integer("steps", 300, "updates")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each arm")
RATES = flags.DEFINE_list("rates", ["0.01", "0.03", "0.1", "0.3", "1.0"], "the grid")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")
BATCH, SEARCH_SEED = 128, 1000
IMAGES = ("NHWC", "HWIO", "NHWC")
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def dense(key, *sizes) -> list[jax.Array]:
    pairs = list(zip(sizes, sizes[1:], strict=False))
    keys = jax.random.split(key, len(pairs))
    normal = jax.random.normal
    return [normal(k, (a, b)) / a**0.5 for k, (a, b) in zip(keys, pairs, strict=True)]


def mlp(activation, *hidden):
    """(init, loss function) of a net of dense layers."""

    def loss_fn(params, batch):
        h = batch["x"].reshape(len(batch["x"]), -1)
        for w in params[:-1]:
            h = activation(h @ w)
        return cross_entropy(h @ params[-1], batch["label"])

    return lambda key: dense(key, 64, *hidden, 10), loss_fn


def convnet():
    def init(key):
        first, second, last = jax.random.split(key, 3)
        shape = (3, 3, 16, 16)
        return {
            "first": jax.random.normal(first, (3, 3, 1, 16)) / 3,
            "second": jax.random.normal(second, shape) / 12,
            "out": dense(last, 2 * 2 * 16, 10)[0],
        }

    def loss_fn(params, batch):
        h = batch["x"].reshape(-1, 8, 8, 1)
        for name in ("first", "second"):
            h = jax.lax.conv_general_dilated(
                h,
                params[name],
                (2, 2),
                "SAME",
                dimension_numbers=IMAGES,
            )
            h = jax.nn.relu(h)
        return cross_entropy(h.reshape(len(h), -1) @ params["out"], batch["label"])

    return init, loss_fn


def recurrent():
    """Reads an image row by row."""

    def init(key):
        one, two, three = jax.random.split(key, 3)
        return {
            "in": dense(one, 8, 48)[0],
            "state": dense(two, 48, 48)[0],
            "out": dense(three, 48, 10)[0],
        }

    def loss_fn(params, batch):
        rows = jnp.moveaxis(batch["x"].reshape(-1, 8, 8), 1, 0)

        def step(h, x):
            return jnp.tanh(x @ params["in"] + h @ params["state"]), None

        h = jax.lax.scan(step, jnp.zeros((rows.shape[1], 48)), rows)[0]
        return cross_entropy(h @ params["out"], batch["label"])

    return init, loss_fn


PROBLEMS = {
    "MLP, two hidden layers": mlp(jax.nn.relu, 64, 64),
    "MLP of thresholds": mlp(jnp.sign, 64, 64),
    "MLP, six hidden layers": mlp(jnp.tanh, *[48] * 6),
    "convnet": convnet(),
    "recurrent net": recurrent(),
}


def compile_runs(estimator, loss_fn, init, data):
    """`(seeds, rate) -> (training losses, validation accuracies)`, vmapped."""
    train, validation = data

    def run(seed, rate):
        tx = optax.chain(estimator, optax.sgd(rate))
        params = init(jax.random.key(seed))

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(train["label"]))
            batch = jax.tree.map(lambda a: a[rows], train)
            updates, state = tx.update(None, state, params, batch=batch)
            return (optax.apply_updates(params, updates), state), bpfree.value(state)

        keys = jax.random.split(jax.random.fold_in(jax.random.key(7), seed), STEPS.value)
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
        right = [
            loss_fn(params, validation | {"label": jnp.full_like(validation["label"], c)})
            for c in range(10)
        ]
        guess = jnp.stack(right).argmin(0)
        found = (guess == validation["label"]).mean()
        return losses[-STEPS.value // 10 :].mean(), found

    return jax.jit(jax.vmap(run, (0, None)))


def measure(problem, data) -> dict[str, Any]:
    init, loss_fn = problem
    train = data[0]
    batch = jax.tree.map(lambda a: a[:BATCH], train)
    params = init(jax.random.key(SEARCH_SEED))
    found = bpfree.diagnostics.recommend(loss_fn, params, batch, budget=BUDGET.value)
    seeds = jnp.arange(SEEDS.value)

    def default(n):
        return bpfree.node_perturbation(loss_fn, num_samples=n)

    samples = bpfree.diagnostics.samples_for(default, BUDGET.value, params, batch)
    run = compile_runs(default(samples), loss_fn, init, data)
    search = jnp.array([SEARCH_SEED])
    by_rate = {float(r): float(run(search, float(r))[0][0]) for r in RATES.value}
    rate = min(by_rate, key=lambda r: by_rate[r] if np.isfinite(by_rate[r]) else np.inf)
    followed = compile_runs(found.estimator(), loss_fn, init, data)
    row = {
        "recommended": found.best.name,
        "samples": found.best.samples,
        "rate": found.best.rate,
        "default_samples": samples,
        "default_rate": rate,
    }
    arms = {"followed": (followed, found.best.rate), "default": (run, rate)}
    for arm, (runs, at) in arms.items():
        losses, right = runs(seeds, at)
        row |= records.spread(f"{arm}_loss", losses)
        row |= records.spread(f"{arm}_accuracy", right)
    return row


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    loaded = digits.load()
    parts = (loaded.train, loaded.validation)
    data = [{k: jnp.asarray(v) for k, v in part.items()} for part in parts]
    rows = {}
    for name, problem in PROBLEMS.items():
        rows[name] = row = measure(problem, data)
        print(f"{name}: {row['recommended']}, rate {row['rate']:.2g}")
        for arm in ("followed", "default"):
            loss, right = f"{arm}_loss", f"{arm}_accuracy"
            print(
                f"    {arm}: loss {row[loss]:.3f} +- {row[loss + '_std']:.3f}, "
                f"accuracy {row[right]:.3f} +- {row[right + '_std']:.3f}",
                flush=True,
            )
    if RESULTS.value:
        records.write(RESULTS.value, list(range(SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
