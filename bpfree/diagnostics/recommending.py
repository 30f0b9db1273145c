"""Which estimator, with which sigma, samples and rate: measured on the user's own batch.

One update theta - eta e moves the mean loss by

    D(eta) = mean over estimates e of  L(theta) - L(theta - eta e)

for each candidate, at equal cost. Noise, curvature and bias of the estimate are all in
D, and so is the rate that they allow; it takes forward passes only, so that losses
without a derivative are judged like any other.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.diagnostics.cost import cost, samples_for
from bpfree.diagnostics.recommendation import Candidate, Make, Recommendation
from bpfree.estimators.base import EstimatorTransformation
from bpfree.estimators.likelihood_ratio import likelihood_ratio
from bpfree.estimators.node_perturbation import node_perturbation
from bpfree.estimators.objective import mean_loss, split
from bpfree.estimators.weight_perturbation import weight_perturbation
from bpfree.program.trace import LossFn
from bpfree.sampling.seeds import as_key

_RATES = 2.0 ** np.arange(-12, 9)  # in units of loss / |estimate|^2


def _defaults(loss_fn: LossFn, batch) -> dict[str, Make]:
    """The candidates: where noise goes, how it is spread, and how far."""

    def written(function, **options) -> tuple[str, Make]:
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        make = partial(function, loss_fn, example_batch=batch, **options)
        return f"{function.__name__}({words})", lambda n: make(num_samples=n)

    near, far = 0.01, 0.1
    return dict(
        [
            written(node_perturbation, sigma=near),
            written(node_perturbation, sigma=far),
            written(node_perturbation, sigma=near, layerwise=True),
            written(node_perturbation, sigma=far, layerwise=True),
            written(likelihood_ratio, sigma=far),
            written(likelihood_ratio, sigma=0.5),
            written(weight_perturbation, sigma=near, rank=1),
            written(weight_perturbation, sigma=far, rank=1),
        ]
    )


def recommend(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    *,
    budget: float = 16.0,
    candidates: Mapping[str, Make] | None = None,
    repeats: int = 16,
    seed: int | jax.Array = 0,
) -> Recommendation:
    r"""Which estimator lowers the loss of this batch most, at equal cost.

    .. math:: D(\eta) = \frac1R \sum_r L(\theta) - L(\theta - \eta\, e_r)

    for every candidate and twenty-one rates, with R independent estimates. A candidate is
    left out if its estimates are zero or not finite, or if it refuses the loss function.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`.
      params, batch: its arguments. Half way through training another estimator may be
        best: ask again there.
      budget: products of one update, in inferences of the batch; the samples follow.
      candidates: {name: `num_samples -> estimator`}. Default: node perturbation with
        sigma 0.01 and 0.1, each also layer-wise, likelihood ratio with 0.1 and 0.5, and
        weight perturbation of rank 1 with 0.01 and 0.1. Estimators that learn
        (`learned_feedback`) need training, not one look.
      repeats: R, at least 2.
      seed: int or typed PRNG key.

    Returns:
      A `Recommendation`; printed, it is a table and a sentence.

    Raises:
      ValueError: fewer than two repeats, or no candidate takes the loss function (with
        the reason that the first one gave).

    Example:
        >>> found = bpfree.diagnostics.recommend(loss_fn, params, batch, repeats=4)
        >>> found.best.descent > 0
        True
    """
    if repeats < 2:
        raise ValueError(f"repeats={repeats} must be at least 2, to know a spread")
    made = _defaults(loss_fn, batch) if candidates is None else candidates
    found, refused = [], {}
    for name, make in made.items():
        try:
            judged = _judge(name, make, params, batch, budget, repeats, as_key(seed))
        except ValueError as error:
            refused[name] = str(error)
            continue
        found.append(judged)
    if not found:
        raise ValueError(f"no candidate takes this loss function: {refused}")
    found.sort(key=lambda c: -c[0].descent)
    return Recommendation(tuple(c for c, _ in found), found[0][1], refused)


def _judge(name, make, params, batch, budget, repeats, key) -> tuple[Candidate, float]:
    samples = samples_for(make, budget, params, batch)
    tx = make(samples)
    run = jax.jit(partial(_descents, tx, repeats))
    loss, unit, after = jax.device_get(run(key, params, batch))
    gains = np.where(np.isfinite(after), loss - after, -np.inf)  # (repeats, rates)
    mean = gains.mean(0)
    best = int(mean.argmax())
    if not np.isfinite(mean[best]):
        raise ValueError("its estimates are zero, or not finite")
    scale = abs(float(loss)) or 1.0
    error = gains[:, best].std(ddof=1) / math.sqrt(repeats)
    judged = Candidate(
        name,
        samples,
        cost(tx, params, batch),
        float(mean[best]) / scale,
        float(error) / scale,
        float(_RATES[best] * unit) / 8,
        make,
    )
    return judged, float(loss)


def _descents(tx: EstimatorTransformation, repeats: int, key, params, batch):
    """(mean loss, unit of the rates, mean losses after a step (repeats, rates))."""
    state = tx.init(params)

    def loss(params, key):
        _, args = split(tx.loss_fn, key, params, batch)
        return mean_loss(tx.loss_fn, args)(params)[0]

    def estimate(key):
        found = tx.estimator.estimate(key, params, batch, state).gradient
        return found, loss(params, key)

    keys = jax.random.split(key, repeats)
    estimates, losses = jax.lax.map(estimate, keys)
    square = sum((g.astype(jnp.float32) ** 2).sum() for g in jax.tree.leaves(estimates))
    unit = jnp.abs(losses.mean()).astype(jnp.float32) * repeats / square

    def after(at):
        estimate, key = at

        def one(rate):
            move = lambda p, g: p - rate.astype(p.dtype) * g  # noqa: E731
            return loss(jax.tree.map(move, params, estimate), key)

        return jax.lax.map(one, jnp.asarray(_RATES, jnp.float32) * unit)

    return losses.mean(), unit, jax.lax.map(after, (estimates, keys))
