"""All estimators train the same net, at equal cost of a step: a table of test accuracies.

    BPFREE_DATA_DIR=... python scripts/compare_training.py [--data=fashion_mnist]

An MLP (or a convnet, `--model=convnet`) by Adam with a cosine schedule. Each estimator
gets as many samples as `--cost` allows: products of one update in units of one inference
of the batch, backprop's own about 3. For each, the learning rate of `--learning_rates`
with the best validation accuracy, on a seed of its own, is the one with which the seeds
0, 1, ... are run; all of them in one vmapped program.
"""

import time

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

DATA = flags.DEFINE_string("data", "fashion_mnist", "digits, or an image set by name")
PREPROCESS = flags.DEFINE_string("preprocess", "centre", "none, centre, standardise, zca")
MODEL = flags.DEFINE_enum("model", "mlp", ["mlp", "convnet"], "the net")
WIDTHS = flags.DEFINE_list("widths", ["128", "128"], "hidden units, or channels")
COST = flags.DEFINE_float("cost", 10, "inferences that a step may cost")
STEPS = flags.DEFINE_integer("steps", 3000, "updates")
BATCH = flags.DEFINE_integer("batch", 64, "examples in a step")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each estimator")
RATES = flags.DEFINE_list("learning_rates", ["3e-4", "1e-3", "3e-3"], "the grid")
RESULTS = flags.DEFINE_string(
    "results", "", "where to write the table as JSON, if anywhere"
)
NAMES = flags.DEFINE_list("arms", [], "estimators of scripts/arms.py; none: all")
SEARCH_SEED = 1000  # of the runs that choose the learning rate


def load():
    if DATA.value == "digits":
        return digits.load()
    return images.load(name=DATA.value, preprocess=PREPROCESS.value)


def make_model(num_classes):
    widths = tuple(map(int, WIDTHS.value))
    if MODEL.value == "mlp":
        return mlp.Model(hidden=widths, num_classes=num_classes)
    return convnet.Model(channels=widths, num_classes=num_classes)


def compile_runs(make, model, data):
    """`(seeds, learning rates) -> [validation, test accuracies]`, vmapped."""
    data, measure = trainer.on_device(data), trainer.measure(model)

    def run(seed, rate):
        state = trainer.train(
            make, model, data, seed, rate, batch_size=BATCH.value, num_steps=STEPS.value
        )
        return [
            measure(state.params, state.model_state, part)["accuracy"]
            for part in (data.validation, data.test)
        ]

    return jax.jit(jax.vmap(run))


def compare(name, loss_fn, model, data) -> dict:
    example = jax.tree.map(lambda a: jnp.asarray(a[: BATCH.value]), data.train)
    params = trainer.shapes(model, example)
    make, samples, cost = arms.seeded(
        arms.ARMS[name], COST.value, loss_fn, params, example
    )
    compiled = compile_runs(make, model, data)
    rates = np.asarray(list(map(float, RATES.value)), np.float32)
    start = time.perf_counter()
    chosen, _ = compiled(np.full(len(rates), SEARCH_SEED), rates)
    best = trainer.best(rates, chosen)
    _, test = compiled(np.arange(SEEDS.value), np.full(SEEDS.value, best))
    seconds = time.perf_counter() - start
    grid = " ".join(f"{v:.4f}" for v in chosen)
    spread = float(np.std(test, ddof=1)) if SEEDS.value > 1 else 0.0
    print(
        f"{name:<26}{samples:>4}{cost:>6.1f}{best:>8.0e}{float(np.mean(test)):>9.4f} +- "
        f"{spread:.4f}   [{grid}]{seconds:>7.0f} s",
        flush=True,
    )
    mean = float(np.mean(test))
    return {"samples": samples, "cost": cost, "accuracy": mean, "accuracy_std": spread}


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if unknown := set(NAMES.value) - set(arms.ARMS):
        raise app.UsageError(f"unknown {sorted(unknown)}; the arms are {list(arms.ARMS)}")
    data = load()
    model = make_model(data.num_classes)
    loss_fn = bpfree.supervised(model, optax.softmax_cross_entropy_with_integer_labels)
    print(f"{DATA.value}, {MODEL.value} {','.join(WIDTHS.value)}, jax {jax.__version__}")
    print(f"{'estimator':<26}{'K':>4}{'cost':>6}{'rate':>8}{'test accuracy':>19}", end="")
    print("   [validation for each rate]")
    names = NAMES.value or arms.ARMS
    rows = {name: compare(name, loss_fn, model, data) for name in names}
    if RESULTS.value:
        records.write(RESULTS.value, list(range(SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
