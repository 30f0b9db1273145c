"""Feedback without a chain against backprop, and what there is to gain over a readout.

    BPFREE_DATA_DIR=... python scripts/parallel_feedback.py [--net=thresholds]

Arms: "backprop", "readout" (backprop on the last layer, the others stay as they began),
"chained", and direct predictors taught by losses and by responses, with as many samples
as `--cost` inferences pay for. Gap of an arm: (its accuracy - readout's) / (backprop's -
readout's). Adam with a cosine schedule; every arm takes the rate of `--learning_rates`
that is best on validation, on a seed of its own, if there are several.

In the net of thresholds nothing has a derivative; "backprop" is then that of its twin
with tanh units, and node perturbation takes the place of "chained".
"""

import time
from functools import partial
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
from bpfree.data import images
from bpfree.estimators.predictors import direct
from bpfree.models import convnet, mlp

NET = flags.DEFINE_enum("net", "convnet", ["convnet", "thresholds"], "row of NETS")
COST = flags.DEFINE_float("cost", 10, "inferences that a step may cost")
STEPS = flags.DEFINE_integer("steps", 1500, "updates")
BATCH = flags.DEFINE_integer("batch", 64, "examples in a step")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each arm")
RATES = flags.DEFINE_list("learning_rates", ["3e-3"], "the grid")
ONLY = flags.DEFINE_list("arms", [], "arms; none: all")
RESULTS = flags.DEFINE_string("results", "", "where to write the rows, if anywhere")
SEARCH_SEED = 1000

_LOSSES = {"teacher": "losses", "antithetic": True}
_feedback = partial(partial, bpfree.learned_feedback)


class Net(NamedTuple):
    """Data, model, model of the control by backprop, last layer, and other arms."""

    data: dict[str, str]
    model: Any
    twin: Any
    last: str
    arms: dict[str, Any]


_CONVNET = partial(convnet.Model, channels=(16, 32, 64), num_classes=10)
_MLP = partial(mlp.Model, hidden=(128, 128), num_classes=10)
NETS = {
    "convnet": Net(
        {"name": "cifar10_jpeg", "preprocess": "standardise"},
        _CONVNET(),
        _CONVNET(),
        "Dense_0",
        {
            "direct, responses, learned gates": arms.Arm(
                _feedback(predictor=direct(gate="learned"))
            ),
            "direct, losses": arms.Arm(_feedback(predictor=direct(), **_LOSSES), 2),
            "chained": arms.Arm(bpfree.learned_feedback, None),
            "direct, responses": arms.Arm(_feedback(predictor=direct())),
        },
    ),
    "thresholds": Net(
        {"name": "mnist", "preprocess": "centre"},
        _MLP(activation="sign"),
        _MLP(activation="tanh"),
        "Dense_2",
        {
            "node perturbation": arms.Arm(partial(bpfree.node_perturbation, sigma=0.5)),
            "direct, losses, learned gates": arms.Arm(
                _feedback(predictor=direct(gate="learned"), sigma=0.5, **_LOSSES), 2
            ),
            "direct, responses, learned gates": arms.Arm(
                _feedback(predictor=direct(gate="learned"), sigma=0.5)
            ),
        },
    ),
}


def supervised(model):
    loss = optax.softmax_cross_entropy_with_integer_labels
    return bpfree.supervised(model, loss)


def compiled_run(make, model, data, wrap):
    """`(seed, rate) -> (validation, test accuracy)`."""
    measure = trainer.measure(model)

    @jax.jit
    def run(parts, seed, rate):
        sizes = {"batch_size": BATCH.value, "num_steps": STEPS.value}
        own = data._replace(train=parts[0])
        state = trainer.train(make, model, own, seed, rate, wrap=wrap, **sizes)
        end = state.params, state.model_state
        return [measure(*end, part)["accuracy"] for part in parts[1:]]

    return partial(run, (data.train, data.validation, data.test))


def compare(arm: arms.Arm, model, data, wrap=lambda adam: adam) -> dict:
    """Samples, cost, rate and accuracy of an arm."""
    loss_fn = supervised(model)
    example = jax.tree.map(lambda a: a[: BATCH.value], data.train)
    params = trainer.shapes(model, example)
    make, samples, cost = arms.seeded(arm, COST.value, loss_fn, params, example)
    run, rates = compiled_run(make, model, data, wrap), list(map(float, RATES.value))
    rate = rates[0]
    if len(rates) > 1:
        found = [float(run(SEARCH_SEED, np.float32(rate))[0]) for rate in rates]
        rate = trainer.best(rates, found)
    ends = [run(seed, np.float32(rate)) for seed in range(SEEDS.value)]
    row = {"samples": samples, "cost": cost, "rate": rate}
    return row | records.spread("accuracy", [float(test) for _, test in ends])


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    net, rows = NETS[NET.value], {}
    data = images.load(**net.data)
    data = trainer.on_device(data._replace(train=jax.tree.map(jnp.asarray, data.train)))
    backprop = arms.Arm(bpfree.backprop, None)
    cases = {
        "backprop": (backprop, net.twin),
        "readout": (backprop, net.model, partial(trainer.only, net.last)),
        **{name: (arm, net.model) for name, arm in net.arms.items()},
    }
    for name, case in cases.items():
        if ONLY.value and name not in ONLY.value:
            continue
        start = time.perf_counter()
        arm, model, *wrap = case
        rows[name] = compare(arm, model, data, *wrap)
        if name in net.arms and {"backprop", "readout"} <= set(rows):
            ends = (rows[end]["accuracy"] for end in ("readout", "backprop"))
            rows[name]["gap"] = records.gap(rows[name]["accuracy"], *ends)
        print(name, rows[name], f"{time.perf_counter() - start:.0f} s", flush=True)
        if RESULTS.value:
            records.write(RESULTS.value, list(range(SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
