"""Learned feedback in deep nets: accuracy, and the time of a step.

    python scripts/depth.py [--depths=12] [--arms=...] [--steps=300]
        [--results=results/depth_transformer.json]
    python scripts/depth.py --net=resnet --depths=20 --batch=32 [--data=tiny_imagenet_20]
        [--results=results/depth_resnet20.json]
    python scripts/depth.py --figure=scripts/figures/depth.png [--from=NAME,NAME]

Causal transformers on characters of Python's own help text, or residual nets on images.
Arms, all with Adam, the same batches and as many steps: "backprop", the twin; "frozen",
backprop on the last layer alone, the control; "responses" and "jvp", the two teachers of
learned feedback; on request "jvp half" and "jvp quarter", whose predictor learns from
every second or fourth example, and "node perturbation" with as many samples as cost what
"jvp" costs. The rate of each arm is the one of `--rates` that is best for the validation
accuracy of a seed of its own; then seeds 0, 1, ... "Ratio": CPU seconds of a run over
those of backprop's, which is in turn with it.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import depth_nets
import jax
import records
import trainer
from absl import app, flags
from depth_nets import Net

import bpfree

LEARNED: dict[str, dict[str, Any]] = {
    "responses": {"teacher": "responses"},
    "jvp": {"teacher": "jvp"},
    "jvp half": {"teacher": "jvp", "fit_stride": 2},
    "jvp quarter": {"teacher": "jvp", "fit_stride": 4},
}
ALL = ["backprop", "frozen", "jvp", "responses"]
NET = flags.DEFINE_enum("net", "transformer", ["transformer", "resnet"], "which")
DEPTHS = flags.DEFINE_list("depths", ["12"], "blocks; of a ResNet its layers: 18, 20, 50")
ARMS = flags.DEFINE_list("arms", ALL, "which; the first is the twin")
STEPS = flags.DEFINE_integer("steps", 300, "updates")
WIDTH = flags.DEFINE_integer("width", 0, "residual stream (32), or first channels (8)")
LENGTH = flags.DEFINE_integer("length", 32, "characters of an example")
DATA = flags.DEFINE_string("data", "cifar10_jpeg", "image set of a ResNet")
NORM = flags.DEFINE_string("norm", "none", "of a ResNet, or batch")
BATCH = flags.DEFINE_integer("batch", 16, "examples in a step")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each arm")
RATES = flags.DEFINE_list("rates", ["2e-3", "6e-3"], "the grid")
RESULTS = flags.DEFINE_string("results", "", "where to write the rows, if anywhere")
FIGURE = flags.DEFINE_string("figure", "", "draw accuracies of result files, run nothing")
FROM = flags.DEFINE_list("from", ["depth_transformer"], "result files of the figure")
SEARCH_SEED = 1000


def make_net(depth: int) -> Net:
    if NET.value == "transformer":
        width = WIDTH.value or 32
        return depth_nets.causal(depth, width, LENGTH.value, BATCH.value)
    width = WIDTH.value or 8
    return depth_nets.residual(depth, width, DATA.value, NORM.value, BATCH.value)


def make_arm(net: Net, arm: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(seed -> estimator, optimiser -> optimiser)."""

    def learned(arm, seed):
        return bpfree.learned_feedback(
            net.loss_fn, example_batch=net.batch, seed=seed, **LEARNED[arm]
        )

    def perturbed(samples, seed=0):
        options = {"num_samples": samples, "sigma": 0.01, "seed": seed}
        return bpfree.node_perturbation(net.loss_fn, example_batch=net.batch, **options)

    def exact(seed):
        return bpfree.backprop(net.loss_fn, example_batch=net.batch, seed=seed)

    if arm in LEARNED:
        return partial(learned, arm), lambda adam: adam
    if arm == "node perturbation":
        budget = bpfree.diagnostics.cost(learned("jvp", 0), net.params, net.batch)
        samples_for = bpfree.diagnostics.samples_for
        count = samples_for(perturbed, budget, net.params, net.batch)
        return partial(perturbed, count), lambda adam: adam
    control = partial(trainer.only, net.readout)
    return exact, control if arm == "frozen" else lambda adam: adam


def compile_run(net: Net, arm: str):
    """`(seed, rate) -> state` at the end of a training; compiled here, once."""
    make, wrap = make_arm(net, arm)

    def run(train, seed, rate):  # the data is an argument: no constant of the program
        sizes = {"batch_size": BATCH.value, "num_steps": STEPS.value}
        data = net.data._replace(train=train)
        end = trainer.train(make, net.model, data, seed, rate, wrap=wrap, **sizes)
        return end._replace(opt_state=())

    train = net.data.train
    compiled = jax.jit(run).lower(train, 0, 1e-3).compile()
    return lambda seed, rate: jax.block_until_ready(compiled(train, seed, rate))


def compare(depth: int):
    """Rows of the arms after each seed; the arms of a seed run one after the other."""
    net = make_net(depth)
    measure = partial(depth_nets.scores, net)
    runs = {arm: compile_run(net, arm) for arm in ARMS.value}
    rows: dict[str, dict[str, Any]] = {}
    tests: dict[str, list[dict[str, float]]] = {arm: [] for arm in runs}
    for arm, run in runs.items():
        rates = list(map(float, RATES.value))
        ends = [run(SEARCH_SEED, rate) for rate in rates]
        found = [measure(end, net.data.validation)["accuracy"] for end in ends]
        cost = bpfree.diagnostics.cost(make_arm(net, arm)[0](0), net.params, net.batch)
        row = {"depth": depth, "arm": arm, "steps": STEPS.value, "cost": cost}
        row |= {"validation": [round(a, 4) for a in found]}
        rows[arm] = row | {"rate": trainer.best(rates, found)}
        print(rows[arm], flush=True)
    for seed in range(SEEDS.value):
        for arm, run in runs.items():
            start = time.process_time()
            end = run(seed, rows[arm]["rate"])
            spent = time.process_time() - start
            tests[arm].append(measure(end, net.data.test) | {"seconds": spent})
        for arm, found in tests.items():
            for name in ("accuracy", "bits"):
                rows[arm] |= records.spread(name, [t[name] for t in found])
            twin = tests[ARMS.value[0]]
            over = [t["seconds"] / b["seconds"] for t, b in zip(found, twin, strict=True)]
            rows[arm] |= records.spread("ratio", over)
        print(seed, rows, flush=True)
        yield seed, {f"{depth} layers: {arm}": row for arm, row in rows.items()}


def draw(path: str, names: list[str]) -> None:
    """Accuracy of each arm against depth, with the spread over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [r for name in names for r in records.read(name)["rows"].values()]
    rows.sort(key=lambda row: row["depth"])
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for arm in ALL:
        own = [row for row in rows if row["arm"] == arm]
        depths, means, spreads = (
            [row[k] for row in own] for k in ("depth", "accuracy", "accuracy_std")
        )
        axes.errorbar(depths, means, spreads, fmt="o-", capsize=3, label=arm)
    axes.set(xlabel="blocks", ylabel="test accuracy", xscale="log")
    depths = sorted({row["depth"] for row in rows})
    axes.set_xticks(depths, map(str, depths), minor=False)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    if FIGURE.value:
        return draw(FIGURE.value, FROM.value)
    rows: dict[str, Any] = {}
    for depth in map(int, DEPTHS.value):
        for seed, found in compare(depth):
            rows |= found
            if RESULTS.value:
                records.write(RESULTS.value, list(range(seed + 1)), rows)


if __name__ == "__main__":
    app.run(main)
