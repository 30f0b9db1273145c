"""Every estimator and what it promises (a table, not a test).

Contracts: "exact"; "aligned", the gradient of the clean loss up to O(sigma^2);
"smoothed", unbiased for the gradient of the loss under the estimator's own noise, at any
sigma.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import bpfree

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


class Row(NamedTuple):
    """One estimator.

    Attributes:
      name: in `bpfree`.
      factory: its constructor.
      contract: "exact", "aligned" or "smoothed", with default options.
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
        extras=("noise", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "likelihood_ratio",
        bpfree.likelihood_ratio,
        contract="smoothed",
        parameters=PERTURBATION,
        extras=("noise", "sigma_optimizer", "example_batch"),
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
)
