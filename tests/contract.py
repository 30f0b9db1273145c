"""Every estimator and what it promises (a table, not a test).

Contracts: "exact"; "unbiased" for the gradient; "aligned", the gradient of the clean loss
up to O(sigma^2); "smoothed", unbiased for the gradient of the loss under the estimator's
own noise, at any sigma; "descent", uphill for no parameter, but not the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import bpfree
from tests import problems

# What every perturbation estimator is called with; `loss_fn` first, the rest by name.
PERTURBATION = (
    "loss_fn",
    "num_samples",
    "sigma",
    "seed",
    "chunk_size",
    "antithetic",
    "baseline",
    "pairing",
    "nodes",
    "sharding",
)

# The same for those that draw noise for the parameters.
WEIGHTS = (
    "loss_fn",
    "num_samples",
    "seed",
    "chunk_size",
    "noise",
    "sharding",
    "example_batch",
)
# Those that divide by the size of the perturbation are centred by the clean loss, always.
NORMALIZED = tuple(p for p in PERTURBATION if p not in ("baseline", "pairing"))


# Unbiased as a control variate; its optimiser outside strict promotion.
_FEEDBACK = {
    "example_batch": problems.mlp_batch(),
    "shrinkage": 1.0,
    "fit": problems.adam(3e-3),
}


class Row(NamedTuple):
    """One estimator.

    Attributes:
      name: in `bpfree`.
      factory: its constructor.
      contract: one of the above, with default options.
      parameters: the agreed parameters it must have.
      extras: the further ones it may have.
      small: options that make it cheap.
      trains: options with which it solves a tiny problem.
    """

    name: str
    factory: Callable[..., Any]
    contract: str
    parameters: tuple[str, ...]
    extras: tuple[str, ...]
    small: dict[str, Any]
    trains: dict[str, Any]


ESTIMATORS = (
    Row(
        "backprop",
        bpfree.backprop,
        contract="exact",
        parameters=("loss_fn", "seed"),
        extras=("example_batch",),
        small={},
        trains={},
    ),
    Row(
        "node_perturbation",
        bpfree.node_perturbation,
        contract="aligned",
        parameters=PERTURBATION,
        extras=("noise", "layerwise", "derivative", "redraw", "credit", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "likelihood_ratio",
        bpfree.likelihood_ratio,
        contract="smoothed",
        parameters=PERTURBATION,
        extras=("noise", "layerwise", "credit", "sigma_optimizer", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "approximated_likelihood_ratio",
        bpfree.approximated_likelihood_ratio,
        contract="aligned",
        parameters=tuple(p for p in PERTURBATION if p != "pairing"),
        extras=("encode", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "iterative_node_perturbation",
        bpfree.iterative_node_perturbation,
        contract="aligned",
        parameters=NORMALIZED,
        extras=("noise", "derivative", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 16, "sigma": 0.05},
    ),
    Row(
        "activity_node_perturbation",
        bpfree.activity_node_perturbation,
        contract="descent",
        parameters=NORMALIZED,
        extras=("noise", "reference", "norm", "scaling", "derivative", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "weight_perturbation",
        bpfree.weight_perturbation,
        contract="aligned",
        parameters=WEIGHTS,
        extras=("sigma", "antithetic", "baseline", "rank", "shaping"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.01},
    ),
    Row(
        "forward_gradient",
        bpfree.forward_gradient,
        contract="unbiased",
        parameters=WEIGHTS,
        extras=("tangents", "rank", "nodes", "credit"),
        small={"num_samples": 4},
        trains={"num_samples": 32},
    ),
    Row(
        "learned_feedback",
        bpfree.learned_feedback,
        contract="aligned",
        parameters=tuple(p for p in PERTURBATION if p not in ("baseline", "pairing")),
        extras=("example_batch", "shrinkage", "predictor", "teacher", "fit"),
        small=_FEEDBACK | {"num_samples": 4},
        trains=_FEEDBACK | {"num_samples": 32, "sigma": 0.05},
    ),
)
