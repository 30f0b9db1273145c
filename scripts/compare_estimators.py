"""All estimators on one net and one batch, at equal cost: a table and a figure.

    python scripts/compare_estimators.py [--cost=16] [--figure=docs/alignment.png]
        [--results=results/compare_estimators.json]

An MLP 64-128-128-10 on 128 handwritten digits, float32, after so many steps of backprop
with Adam, during which the predictors of learned feedback have been fitted, too. The
table has one row for each estimator, with as many samples as `--cost` allows: products of
one update in units of one inference of the batch; the last column is the number of
samples that a cosine of 0.9 takes by the variance alone. The figure has the cosine with
the gradient against the cost, for the first net. Mean and standard deviation over
estimates, mean over nets; `limit` is the cosine of the mean of infinitely many.
"""

from pathlib import Path

import arms
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import records
from absl import app, flags

import bpfree
from bpfree import diagnostics
from bpfree.data import digits
from bpfree.models.mlp import Model

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COST = flags.DEFINE_float("cost", 16, "inferences an update may cost, in the table")
COSTS = flags.DEFINE_list("costs", ["4", "8", "16", "32", "64", "128"], "in the figure")
STEPS = flags.DEFINE_integer("steps", 200, "steps of backprop before the comparison")
REPEATS = flags.DEFINE_integer("repeats", 24, "estimates for each net")
SEEDS = flags.DEFINE_integer("seeds", 3, "nets, differently initialised")
RESULTS = flags.DEFINE_string(
    "results", "", "where to write the table as JSON, if anywhere"
)
FIGURE = flags.DEFINE_string("figure", "", "where to write the figure, if anywhere")
BATCH = 128


def train(loss_fn, params, data, watcher):
    """Params after some steps of Adam on the exact gradient; `watcher` sees them all."""
    tx = optax.chain(bpfree.backprop(loss_fn), optax.adam(1e-3))

    @jax.jit
    def run(params, watching):
        def step(carry, key):
            params, state, watching = carry
            rows = jax.random.randint(key, (BATCH,), 0, len(data["label"]))
            batch = jax.tree.map(lambda a: a[rows], data)
            _, watching = watcher.update(None, watching, params, batch=batch)
            updates, state = tx.update(None, state, params, batch=batch)
            return (optax.apply_updates(params, updates), state, watching), None

        keys = jax.random.split(jax.random.key(1), STEPS.value)
        carry = (params, tx.init(params), watching)
        params, _, watching = jax.lax.scan(step, carry, keys)[0]
        return params, watching

    return run(params, watcher.init(params))


def row(name: str, cost: float, loss_fn, nets, data) -> dict:
    """Mean and spread over the nets of one estimator at one cost."""
    batch = jax.tree.map(lambda a: a[:BATCH], data)
    tx, samples = arms.at_cost(arms.ARMS[name], cost, loss_fn, nets[0], batch)
    reports = []
    for seed, params in enumerate(nets):
        state = None
        if name.startswith("feedback"):
            params, state = train(loss_fn, params, data, tx)
        elif STEPS.value:
            params, _ = train(loss_fn, params, data, bpfree.backprop(loss_fn))
        reports.append(
            diagnostics.measure(
                tx, params, batch, repeats=REPEATS.value, seed=seed, state=state
            )
        )
    found = [r.overall for r in reports]
    return {
        "samples": samples,
        "cost": reports[0].cost,
        "cosine": np.mean([a.cosine for a in found]),
        "cosine_std": np.mean([a.cosine_std for a in found]),
        "slope": np.mean([a.slope for a in found]),
        "variance": np.mean([a.variance for a in found]),
        "needed": np.mean(
            [a._replace(bias_squared=0.0).estimates_for(0.9) for a in found]
        )
        * samples,
        "limit": np.mean([a.cosine_of_mean(np.inf) for a in found]),
    }


def table(rows: dict[str, dict]) -> None:
    print(f"{'estimator':<26}{'K':>5}{'cost':>7}{'cosine':>16}{'slope':>8}", end="")
    print(f"{'variance':>10}{'K for 0.9':>11}")
    for name, r in rows.items():
        print(
            f"{name:<26}{r['samples']:>5}{r['cost']:>7.1f}"
            f"{r['cosine']:>8.3f} +- {r['cosine_std']:.3f}{r['slope']:>8.2f}"
            f"{r['variance']:>10.3g}{r['needed']:>11.3g}",
            flush=True,
        )


def draw(curves: dict[str, list[dict]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    marks = "os^vDP*X<>ph8d"
    ordered = sorted(curves, key=lambda n: -curves[n][-1]["cosine"])
    for i, name in enumerate(ordered):
        costs = [r["cost"] for r in curves[name]]
        cosines = [r["cosine"] for r in curves[name]]
        axes.plot(
            costs, cosines, marker=marks[i % len(marks)], ms=5, lw=1.2, label=name,
            color=plt.get_cmap("tab20")(i % 20),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("cost of one update, inferences of the batch (products)")
    axes.set_ylabel("cosine with the gradient")
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    model = Model(hidden=(128, 128), num_classes=10)
    data = {k: jnp.asarray(v) for k, v in digits.load().train.items()}
    loss_fn = bpfree.supervised(model, optax.softmax_cross_entropy_with_integer_labels)
    keys = jax.random.split(jax.random.key(0), SEEDS.value)
    nets = [model.init(key, data["x"][:1])["params"] for key in keys]
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {STEPS.value} steps")
    rows = {name: row(name, COST.value, loss_fn, nets, data) for name in arms.ARMS}
    table(rows)
    if RESULTS.value:
        records.write(RESULTS.value, list(range(SEEDS.value)), rows)
    if FIGURE.value:
        curves = {}
        for name, arm in arms.ARMS.items():
            costs = map(float, COSTS.value) if arm.group else [1.0]
            curves[name] = [row(name, c, loss_fn, nets[:1], data) for c in costs]
        draw(curves, Path(FIGURE.value))


if __name__ == "__main__":
    app.run(main)
