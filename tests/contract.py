"""Every public constructor and what it promises (a table, not a test).

Contracts: "exact"; "unbiased" for the gradient; "aligned", the gradient of the clean loss
up to O(sigma^2); "smoothed", unbiased for the gradient of the loss under the estimator's
own noise, at any sigma; "descent", uphill for no parameter, but not the gradient;
"nudged", nothing random, and the gradient up to a power of the nudging.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import bpfree
from bpfree import equilibrium as eq
from tests import energies, problems

# What every perturbation estimator is called with; `loss_fn` first, the rest by name.
PERTURBATION = (
    "loss_fn",
    "num_samples",
    "sigma",
    "seed",
    "chunk_size",
    "antithetic",
    "baseline",
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
NORMALIZED = tuple(p for p in PERTURBATION if p != "baseline")


# Unbiased as a control variate; its optimiser outside strict promotion.
_FEEDBACK = {
    "example_batch": problems.mlp_batch(),
    "shrinkage": 1.0,
    "fit": problems.adam(3e-3),
}


def _mlp():
    return problems.mlp_loss, problems.mlp_params(), problems.mlp_batch()


@functools.cache
def _energy():
    energy, data = energies.mlp((6, 5), 3), energies.batch(4, (7,), 3)
    return energy, energy.init(jax.random.key(2), data["x"]), data


class Row(NamedTuple):
    """One constructor.

    Attributes:
      name: in `bpfree`.
      factory: its constructor.
      contract: one of the above, with default options.
      parameters: the agreed parameters it must have.
      extras: the further ones it may have.
      small: options that make it cheap.
      trains: options with which it solves a tiny problem.
      positional: its arguments that are not by name only.
      problem: makes (the first argument, params, batch).
    """

    name: str
    factory: Callable[..., Any]
    contract: str
    parameters: tuple[str, ...]
    extras: tuple[str, ...]
    small: dict[str, Any]
    trains: dict[str, Any]
    positional: tuple[str, ...] = ("loss_fn",)
    problem: Callable[[], tuple[Any, Any, Any]] = _mlp


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
        extras=(
            *("noise", "layerwise", "derivative", "redraw", "credit", "example_batch"),
            *("hold_statistics", "hold_stop_gradient"),
        ),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "likelihood_ratio",
        bpfree.likelihood_ratio,
        contract="smoothed",
        parameters=PERTURBATION,
        extras=(
            "pairing",
            "noise",
            "layerwise",
            "credit",
            "sigma_optimizer",
            *("hold_statistics", "hold_stop_gradient"),
            "example_batch",
        ),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "approximated_likelihood_ratio",
        bpfree.approximated_likelihood_ratio,
        contract="aligned",
        parameters=PERTURBATION,
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
        extras=("noise", "reference", "norm", "derivative", "example_batch"),
        small={"num_samples": 4},
        trains={"num_samples": 32, "sigma": 0.05},
    ),
    Row(
        "weight_perturbation",
        bpfree.weight_perturbation,
        contract="aligned",
        parameters=WEIGHTS,
        extras=("sigma", "antithetic", "baseline", "rank", "hold_stop_gradient"),
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
        parameters=NORMALIZED,
        extras=(
            "example_batch",
            "shrinkage",
            "predictor",
            "teacher",
            "fit",
            "fit_stride",
        ),
        small=_FEEDBACK | {"num_samples": 4},
        trains=_FEEDBACK | {"num_samples": 32, "sigma": 0.05},
    ),
)


def _of_energy(name: str, contract: str, extras: tuple[str, ...], **small: Any) -> Row:
    return Row(
        name,
        getattr(bpfree, name),
        contract,
        ("energy", "seed"),
        extras,
        small,
        trains={},
        positional=("energy",),
        problem=_energy,
    )


def _parts():
    noisy = bpfree.node_perturbation(problems.mlp_loss, num_samples=4)
    parts = {"noisy": noisy, "exact": bpfree.backprop(problems.mlp_loss)}
    return parts, *_mlp()[1:]


_LABELS = {"w1": "noisy", "b1": "noisy", "w2": "exact", "b2": "exact", "scale": "exact"}
_SHORT = eq.Relaxation(8, 8, 8, factor=1.0, tolerance=None)

# Made of the estimators above, or of an energy: what they estimate is tested elsewhere
# (test_sigma, test_equilibrium, test_combine), and here that they keep the interface.
FURTHER = (
    _of_energy(
        "equilibrium_propagation",
        "nudged",
        ("nudging", "relaxation", "sharding"),
        relaxation=_SHORT,
    ),
    _of_energy(
        "online_equilibrium_propagation",
        "nudged",
        (
            "radius",
            "num_points",
            "sweeps",
            "periods",
            "ordering",
            "factor",
            "noise_scale",
        ),
        num_points=4,
        sweeps=3,
        periods=1,
    ),
    _of_energy(
        "recurrent_backprop",
        "exact",
        ("relaxation", "adjoint_sweeps", "adjoint_tolerance"),
        relaxation=_SHORT,
        adjoint_sweeps=8,
    ),
    _of_energy("backprop_through_time", "exact", ("relaxation",), relaxation=_SHORT),
    Row(
        "combine",
        bpfree.combine,
        contract="aligned",
        parameters=("estimators", "labels", "seed"),
        extras=("example_batch",),
        small={"labels": _LABELS},
        trains={},
        positional=("estimators", "labels"),
        problem=_parts,
    ),
)

# An optimiser that reads the batch: it takes no seed, and updates are no gradient.
WRAPPERS = (
    Row(
        "decorrelate",
        bpfree.decorrelate,
        contract="exact",
        parameters=("inner", "loss_fn", "example_batch"),
        extras=(
            "rule",
            "layers",
            "every",
            "until",
            "fraction",
            "cap",
            "block",
            "channel_only",
            "shared",
        ),
        small={"loss_fn": problems.mlp_loss, "example_batch": problems.mlp_batch()},
        trains={},
        positional=("inner", "loss_fn"),
        problem=lambda: (optax.sgd(0.1), *_mlp()[1:]),
    ),
)
