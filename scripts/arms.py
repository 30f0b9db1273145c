"""The estimators that the comparisons compare, each at a cost that is asked for.

Cost is `bpfree.diagnostics.cost`: products of one update, in inferences of the batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import bpfree
from bpfree.estimators.predictors import direct


class Arm(NamedTuple):
    """A constructor, and of what `num_samples` is a multiple; None: it has one cost."""

    make: Callable[..., Any]
    group: int | None = 1


_SMALL = {"sigma": 0.01}
_PAIRS = {"antithetic": True, **_SMALL}
_LOSSES = {"teacher": "losses", "antithetic": True, "sigma": 0.02}

# In a net of dense layers "direct channel" is "direct losses": each entry is a channel.
ARMS = {
    "backprop": Arm(bpfree.backprop, None),
    "np": Arm(partial(bpfree.node_perturbation, **_SMALL)),
    "np gaussian": Arm(partial(bpfree.node_perturbation, noise="gaussian", **_SMALL)),
    "np antithetic": Arm(partial(bpfree.node_perturbation, **_PAIRS), 2),
    "np layerwise": Arm(partial(bpfree.node_perturbation, layerwise=True, **_SMALL)),
    "inp": Arm(partial(bpfree.iterative_node_perturbation, **_SMALL)),
    "anp": Arm(partial(bpfree.activity_node_perturbation, **_SMALL)),
    "lr noisy": Arm(partial(bpfree.likelihood_ratio, **_SMALL)),
    "lr noisy sigma 0.3": Arm(partial(bpfree.likelihood_ratio, sigma=0.3)),
    "approximated lr": Arm(partial(bpfree.approximated_likelihood_ratio, **_SMALL)),
    "wp": Arm(partial(bpfree.weight_perturbation, sigma=1e-3)),
    "wp rank 1": Arm(partial(bpfree.weight_perturbation, rank=1, sigma=1e-3)),
    "forward gradient nodes": Arm(bpfree.forward_gradient),
    "forward gradient weights": Arm(partial(bpfree.forward_gradient, tangents="weights")),
    "feedback": Arm(bpfree.learned_feedback, None),
    "feedback responses": Arm(
        partial(bpfree.learned_feedback, teacher="responses"), None
    ),
    "feedback losses": Arm(partial(bpfree.learned_feedback, **_LOSSES), 2),
    "feedback direct losses": Arm(
        partial(bpfree.learned_feedback, predictor=direct(), **_LOSSES), 2
    ),
    "feedback direct channel": Arm(
        partial(bpfree.learned_feedback, predictor=direct(per="channel"), **_LOSSES), 2
    ),
}


def at_cost(
    arm: Arm, budget: float, loss_fn: Callable, params: Any, batch: Any, **kwargs: Any
) -> tuple[Any, int]:
    """(estimator, its num_samples): as many samples as the budget allows, one group at
    least. The cost is linear in full chunks of samples; two counts give the line."""

    def make(samples=None):
        counts = {} if samples is None else {"num_samples": samples}
        return arm.make(loss_fn, example_batch=batch, **counts, **kwargs)

    if arm.group is None:
        return make(), 1
    samples = bpfree.diagnostics.samples_for(make, budget, params, batch, group=arm.group)
    return make(samples), samples


def seeded(
    arm: Arm, budget: float, loss_fn: Callable, params: Any, batch: Any
) -> tuple[Callable[[Any], Any], int, float]:
    """(seed -> the estimator of `at_cost`, its num_samples, its cost)."""
    _, samples = at_cost(arm, budget, loss_fn, params, batch)
    counts = {} if arm.group is None else {"num_samples": samples}
    make = partial(arm.make, loss_fn, example_batch=batch, **counts)
    cost = bpfree.diagnostics.cost(make(seed=0), params, batch)
    return lambda seed: make(seed=seed), samples, cost
