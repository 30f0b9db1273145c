"""Nets trained by several rules, under attacks and corruptions.

    BPFREE_DATA_DIR=... python scripts/robustness.py [--data=mnist]
        [--figure=a.png] [--results=results/robustness.json]

An MLP 784-50-10 by each rule, 3 seeds in one vmapped program; then its accuracy on test
images: clean, under FGSM made on another net (transfer: a backprop net of rectifiers),
under white-box attacks, a gradient-free one, and noise. "backprop noise" is backprop
through the noise that the likelihood ratio trains with: it tells the effect of the noise
from that of the estimator; "backprop early" stops after `--early` updates, at about the
clean accuracy of the likelihood ratio. For threshold units the white-box attacks have no
derivative, and say nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records
import trainer
from absl import app, flags

import bpfree
from bpfree import equilibrium, robustness
from bpfree.data import images
from bpfree.models import hopfield, mlp

DATA = flags.DEFINE_string("data", "mnist", "an image set by name")
EPSILON = flags.DEFINE_float("epsilon", 0.13, "of the attacks, pixels being 0 to 1")
STEPS = flags.DEFINE_integer("steps", 4000, "updates")
BATCH = flags.DEFINE_integer("batch", 128, "examples in a step")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each rule")
SAMPLES = flags.DEFINE_integer("samples", 16, "noisy passes of an estimator")
SIGMA = flags.DEFINE_float("sigma", 0.5, "of the likelihood ratio's noise")
IMAGES = flags.DEFINE_integer("images", 1000, "test images that are attacked")
EARLY = flags.DEFINE_integer("early", 1300, "updates of backprop that stops early")
RULES = flags.DEFINE_list("rules", [], "some of the rules; none: all")
RATE = flags.DEFINE_float("learning_rate", 3e-3, "of Adam, for all rules")
FIGURE = flags.DEFINE_string("figure", "", "where to draw accuracy against epsilon")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")
GRID = (0.0, 0.03, 0.06, 0.1, 0.13, 0.2, 0.3)

LOSS = optax.softmax_cross_entropy_with_integer_labels


class Rule(NamedTuple):
    """A net, how it is trained, and how it predicts where attacks take derivatives.

    Attributes:
      model: a `Model` of bpfree.models, unfinished: it lacks num_classes.
      constructor: (loss_fn, seed=, example_batch=) -> estimator.
      wrap: (optimiser, loss_fn, example_batch) -> optimiser.
      steps: updates; 0 for `--steps`.
    """

    model: Callable[..., Any]
    constructor: Callable[..., Any]
    wrap: Callable[..., Any] = lambda adam, loss_fn, example: adam
    steps: int = 0

    def objective(self, model):
        if hasattr(model, "objective"):
            return model.objective()
        return bpfree.supervised(model, LOSS)


def net(activation):
    return partial(mlp.Model, hidden=(50,), activation=activation)


def rules():
    """{name: Rule}."""
    smooth = net("sigmoid")
    noise = {"num_samples": SAMPLES.value, "noise": "shared_gaussian"}
    lr = partial(bpfree.likelihood_ratio, sigma=SIGMA.value, **noise)
    perturb = {"num_samples": SAMPLES.value}
    relaxation = equilibrium.Relaxation(free=12, nudged=10, factor=1.0, tolerance=None)

    def ep(energy, seed, example_batch):
        nudging = equilibrium.holomorphic(0.4, 4)
        return bpfree.equilibrium_propagation(
            energy, nudging=nudging, relaxation=relaxation, seed=seed
        )

    return {
        "backprop": Rule(smooth, bpfree.backprop),
        "backprop early": Rule(smooth, bpfree.backprop, steps=EARLY.value),
        "backprop noise": Rule(smooth, backprop_through_noise),
        "decorrelated": Rule(smooth, bpfree.backprop, decorrelated),
        "lr": Rule(smooth, lr),
        "lr threshold": Rule(net("sign"), lr),
        "np": Rule(smooth, partial(bpfree.node_perturbation, **perturb)),
        "anp": Rule(smooth, partial(bpfree.activity_node_perturbation, **perturb)),
        "feedback": Rule(smooth, bpfree.learned_feedback),
        "ep": Rule(partial(hopfield.Model, hidden=(50,)), ep),
    }


def decorrelated(adam, loss_fn, example):
    """DBP: the papers' rule, which takes no factorisation and so can be vmapped."""
    rule = bpfree.decorrelation.dbp()
    return bpfree.decorrelate(adam, loss_fn, example_batch=example, rule=rule, block=None)


def backprop_through_noise(loss_fn, *, seed, example_batch):
    """Backprop on the loss with one draw of the likelihood ratio's noise at the nodes."""

    def noisy(params, batch, key):
        values = jax.eval_shape(bpfree.record(loss_fn), params, batch)[1]
        keys = jax.random.split(key, len(values))
        deltas = {
            name: SIGMA.value * jax.random.normal(k, y.shape, y.dtype)
            for k, (name, y) in zip(keys, values.items(), strict=True)
        }
        return bpfree.inject(loss_fn)(params, batch, deltas)[0]

    return bpfree.backprop(noisy, seed=seed, example_batch=example_batch)


def make_trainer(rule, data):
    """(logits, (seeds,) -> params), with `logits(params, x)` differentiable."""
    model = rule.model(num_classes=data.num_classes)
    loss_fn = rule.objective(model)
    example = jax.tree.map(lambda a: a[: BATCH.value], data.train)

    def run(seed):
        def make(key):
            return rule.constructor(loss_fn, seed=key, example_batch=example)

        size = {"batch_size": BATCH.value, "num_steps": rule.steps or STEPS.value}
        wrap = partial(rule.wrap, loss_fn=loss_fn, example=example)
        return trainer.train(
            make, model, data, seed, RATE.value, wrap=wrap, **size
        ).params

    def logits(params, x):
        if not hasattr(model, "objective"):
            return model.apply({"params": params}, x)
        batch = {"x": x, "label": jnp.zeros(len(x), jnp.int32)}
        sweeps = equilibrium.Relaxation(free=20, factor=1.0, tolerance=None)
        return equilibrium.predict(loss_fn, params, batch, sweeps)

    return logits, jax.jit(jax.vmap(run))


def looks(bounds, transferred):
    """{column: (loss, x, label, key) -> x}; `transferred` was made on another net."""
    epsilon = EPSILON.value
    attack = {"epsilon": epsilon, "bounds": bounds}

    def search(loss, x, label, key):
        return robustness.random_search(loss, x, label, key=key, **attack)

    def pgd(loss, x, label, key):
        return robustness.pgd(loss, x, label, key=key, restarts=2, **attack)

    def noise(name, loss, x, label, key):
        shifted = robustness.corrupted(name, key, x - bounds[0], 3)
        return shifted + bounds[0]

    return {
        "clean": lambda loss, x, label, key: x,
        "transfer": lambda loss, x, label, key: transferred,
        "fgsm": lambda loss, x, label, key: robustness.fgsm(loss, x, label, **attack),
        "pgd": pgd,
        "mi_fgsm": lambda loss, x, label, key: robustness.mi_fgsm(
            loss, x, label, **attack
        ),
        "search": search,
        "gaussian": partial(noise, "gaussian"),
        "salt, pepper": partial(noise, "salt_and_pepper"),
        "contrast": partial(noise, "contrast"),
    }


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    data = trainer.on_device(images.load(name=DATA.value, preprocess="none"))
    mean = float(data.train["x"].mean())
    shifted = lambda part: {**part, "x": part["x"] - mean}  # noqa: E731
    data = data._replace(train=shifted(data.train), test=shifted(data.test))
    bounds = (-mean, 1 - mean)
    x, label = (data.test[k][: IMAGES.value] for k in ("x", "label"))
    source, train = make_trainer(Rule(net("relu"), bpfree.backprop), data)
    other = jax.tree.map(lambda p: p[0], train(jnp.array([1000])))
    loss_of_other = lambda x, label: LOSS(source(other, x), label)  # noqa: E731
    curve = [robustness.fgsm(loss_of_other, x, label, e, bounds) for e in GRID]
    transferred = robustness.fgsm(loss_of_other, x, label, EPSILON.value, bounds)
    columns = looks(bounds, transferred)
    print(f"{DATA.value}, epsilon {EPSILON.value}, jax {jax.__version__}")
    print(f"{'rule':<17}" + "".join(f"{c:>15}" for c in columns), flush=True)
    curves, rows = {}, {}
    for name, rule in rules().items():
        if RULES.value and name not in RULES.value:
            continue
        logits, train = make_trainer(rule, data)
        params = train(jnp.arange(SEEDS.value))

        def look(change, params, logits=logits):
            apply = lambda x: logits(params, x)  # noqa: E731
            loss = lambda x, label: LOSS(apply(x), label)  # noqa: E731
            changed = change(loss, x, label, jax.random.key(0))
            return robustness.accuracy(apply, changed, label)

        found = [jax.jit(jax.vmap(partial(look, c)))(params) for c in columns.values()]
        means, spreads = np.mean(found, axis=1), np.std(found, axis=1, ddof=1)
        pairs = zip(means, spreads, strict=True)
        cells = (f"{mean:>8.3f} +-{spread:.3f}" for mean, spread in pairs)
        print(f"{name:<17}" + " ".join(cells), flush=True)
        rows[name] = dict(zip(columns, map(float, means), strict=True))
        names = (f"{column}_std" for column in columns)
        rows[name] |= dict(zip(names, map(float, spreads), strict=True))
        if RESULTS.value:
            records.write(RESULTS.value, list(range(SEEDS.value)), rows)
        curves[name] = [
            np.asarray(jax.vmap(partial(look, lambda *_, made=made: made))(params))
            for made in curve
        ]
    if FIGURE.value:
        draw(curves)


def draw(curves) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, accuracies in curves.items():
        rows = np.array(accuracies)
        axes.errorbar(GRID, rows.mean(1), rows.std(1, ddof=1), label=name, capsize=2)
    axes.set(xlabel="epsilon of FGSM made on another net", ylabel="test accuracy")
    axes.legend()
    figure.savefig(FIGURE.value, dpi=120)


if __name__ == "__main__":
    app.run(main)
