"""Is the gradient of equilibrium propagation right while a network trains with it?

    python scripts/ep_alignment.py --config=configs/ep_cifar10.py:few [--images=10000]

Trains on the first `--images` of the training set. Every `--every` steps: the cosine of
the estimate with implicit differentiation, both on the same `--sub` examples of the next
batch and at the same parameters, the relative error, and the accuracy on the first
`--test` test images. Then the backprop twin, the feed-forward net of the same shape (ReLU
in place of relaxation), trains with the same chain behind another first link, on the same
batches (`--arms=ep` or `--arms=bp`: one of the two). `--out` keeps the trained weights
and some images for `benchmark_ep.py --trained`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from benchmark_ep import FeedForward, relative_error
from ml_collections import config_flags

import bpfree
from bpfree import equilibrium as eq
from bpfree.estimators.reading import find_state
from bpfree.sampling.seeds import from_words
from bpfree.training import chain, config, job

CONFIG = config_flags.DEFINE_config_file("config", None, "an EP config")
IMAGES = flags.DEFINE_integer("images", 10_000, "training images")
TEST = flags.DEFINE_integer("test", 2000, "test images")
EVERY = flags.DEFINE_integer("every", 39, "steps between two comparisons")
SUB = flags.DEFINE_integer("sub", 16, "examples of a comparison")
ARMS = flags.DEFINE_list("arms", ["ep", "bp"], "what to train: ep, bp")
OUT = flags.DEFINE_string("out", "", "file for the trained weights (npz)")


def batches(data, size, steps, seed):
    """Permutations of the first images, one after the other."""
    rng, count = np.random.default_rng(seed), min(IMAGES.value, len(data["label"]))
    order = np.empty(0, int)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count)
        rows, order = order[:size], order[size:]
        yield {name: jnp.asarray(data[name][rows]) for name in ("x", "label")}


def accuracy(predict, params, test) -> float:
    right = 0
    for i in range(0, TEST.value, 250):
        logits = predict(params, jnp.asarray(test["x"][i : i + 250]))
        right += int((logits.argmax(1) == test["label"][i : i + 250]).sum())
    return right / TEST.value


def cosine(a, b) -> float:
    x, y = (np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def compiled(transformation):
    @jax.jit
    def step(params, state, batch):
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, state = transformation.update(zeros, state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    return step


def train_by_ep(ready, settings):
    task, energy, test = ready.task, ready.loss_fn, ready.data.test
    exact = bpfree.recurrent_backprop(
        energy, relaxation=eq.Relaxation(free=200, factor=1.0, tolerance=1e-5)
    )
    step = compiled(task.transformation)
    predict = jax.jit(lambda p, x: task.model.apply({"params": p}, x))

    @jax.jit
    def compare(params, state, batch):
        """(estimate, truth); the state's adapted factor is used and not changed."""
        found = find_state(state)
        estimate = ready.chain.estimator.estimator.estimate(
            from_words(found.key), params, batch, found
        ).gradient
        return estimate, exact.update(None, exact.init(params), params, batch=batch)[0]

    params = ready.params
    state = task.transformation.init(params)
    print("step   cosine    error     sweeps   loss  accuracy", flush=True)
    feed = batches(ready.data.train, settings.batch_size, settings.num_steps, 0)
    for i, batch in enumerate(feed):
        if i % EVERY.value == 0 or i + 1 == settings.num_steps:
            sub = {name: a[: SUB.value] for name, a in batch.items()}
            found, truth = compare(params, state, sub)
            said = bpfree.metrics(state)
            sweeps = [int(said[f"{kind}_sweeps"]) for kind in ("free", "nudged")]
            error, loss = relative_error(found, truth), float(bpfree.value(state))
            right = accuracy(predict, params, test)
            print(
                f"{i:4d}  {cosine(found, truth):.5f}  {error:.1e}  {sweeps!s:>9}  "
                f"{loss:.3f}  {right:.4f}",
                flush=True,
            )
        params, state = step(params, state, batch)
    return params, accuracy(predict, params, test)


def train_twin(ready, settings):
    twin = FeedForward(tuple(settings.model["channels"]), tuple(settings.model["hidden"]))
    loss = optax.softmax_cross_entropy_with_integer_labels
    links = (("backprop", {}), *settings.chain[1:])
    built = chain.build(
        links,
        settings.sections,
        bpfree.supervised(twin, loss),
        jax.random.key(0),
        ready.batch,
    )
    params = twin.init(jax.random.key(settings.seed), ready.batch["x"])["params"]
    state = built.transformation.init(params)
    step = compiled(built.transformation)
    predict = jax.jit(lambda p, x: twin.apply({"params": p}, x))
    feed = batches(ready.data.train, settings.batch_size, settings.num_steps, 0)
    for i, batch in enumerate(feed):
        if i % EVERY.value == 0:
            right = accuracy(predict, params, ready.data.test)
            print(
                f"{i:4d}  twin  {float(bpfree.value(state)):.3f}  {right:.4f}", flush=True
            )
        params, state = step(params, state, batch)
    return accuracy(predict, params, ready.data.test)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    settings = config.read(CONFIG.value)
    ready = job.prepare(settings)
    if "ep" in ARMS.value:
        params, right = train_by_ep(ready, settings)
        print(f"equilibrium propagation {right:.4f}", flush=True)
        if OUT.value:
            save(params, ready.data.train)
    if "bp" in ARMS.value:
        print(f"backprop twin           {train_twin(ready, settings):.4f}")


def save(params, data) -> None:
    kept = {f"{a}/{b}": v for a, d in params.items() for b, v in d.items()}
    some = {name: np.asarray(data[name][:640]) for name in ("x", "label")}
    np.savez(OUT.value, **kept, **some)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
