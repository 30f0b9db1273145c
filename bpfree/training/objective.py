"""What is minimised: config.objective = {"losses": "step", "noise": "auto"}.

By default the cross-entropy of each example, with noise on the outputs of weight
products, which are found in the model's program. A model with an `objective` of its own
(an energy, a graph's nodes) says itself what it minimises.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import optax
from flax import linen as nn

import bpfree
from bpfree.adapters import NOISE
from bpfree.equilibrium.energy import Energy
from bpfree.training import frozen
from bpfree.training.names import ConfigError, check_known

CHOICES = {"losses": ("example", "step"), "noise": NOISE}


def check(section: Any) -> dict[str, Any]:
    """The config's entry `objective`, or {}; raises ConfigError.

    Its keys: "losses", "example" for one loss each (B,), the mean over its labels, or
    "step" for one at each of its labels (B, T), which estimators with `credit=` take;
    "noise", where layers have their nodes, as in `bpfree.supervised`.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"config.objective={section!r} has the wrong type")
    check_known("config.objective entry", section, CHOICES)
    for key, value in section.items():
        check_known(f"config.objective.{key}", [value], CHOICES[key])
    return dict(section)


def make(
    section: Mapping[str, Any],
    model: Any,
    mutable: tuple[str, ...],
    still: tuple[str, ...],
) -> Any:
    """The objective of the model, of which the modules `still` do not move."""
    loss = partial(cross_entropy, losses=section.get("losses", "example"))
    if isinstance(model, nn.Module) and not hasattr(model, "objective"):
        loss_fn = bpfree.supervised(
            model,
            loss,
            noise=section.get("noise", "preactivation"),
            mutable=mutable,
            train=True,
        )
        return frozen.hold(still, loss_fn)
    if not hasattr(model, "objective"):
        if mutable:
            raise ConfigError(f"config.model: only Linen modules may have {mutable}")
        if "noise" in section:
            raise ConfigError("config.objective.noise is for Linen modules")

        def plain(params, batch):
            return loss(model.apply({"params": params}, batch["x"]), batch["label"])

        return frozen.hold(still, plain)
    if section:
        raise ConfigError("config.objective: this model has an objective of its own")
    objective = model.objective()
    if still and isinstance(objective, Energy):
        raise ConfigError("config.frozen: this model has an energy")
    return frozen.hold(still, objective)


def cross_entropy(logits: Any, labels: jax.Array, losses: str = "example") -> jax.Array:
    """Of each example (B,), the mean over its labels; or of each of its labels (B, T)."""
    found = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if losses == "example":
        return found.mean(range(1, found.ndim))
    if found.ndim != 2:
        raise ValueError(
            "config.objective.losses='step' needs labels (B, T), one for each step; the "
            f"data set has {labels.shape}"
        )
    return found
