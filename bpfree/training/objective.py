"""How the loss is taken: config.objective = {"losses": "step", "noise": "auto"}.

By default one of each example, with noise on the outputs of weight products, which are
found in the model's program. A model with a method `objective` (an energy, a graph's
nodes) says itself what it minimises.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from bpfree.adapters import Noise
from bpfree.equilibrium.energy import Energy
from bpfree.training import losses
from bpfree.training.frozen import hold
from bpfree.training.model import supervised
from bpfree.training.names import ConfigError


class Objective(NamedTuple):
    """The config's entry `objective`.

    Attributes:
      losses: "example" for one loss each (B,), the mean over its labels, or "step" for
        one at each of its labels (B, T), which estimators with `credit=` take.
      noise: where layers have their nodes, as in `bpfree.supervised`.
    """

    losses: Literal["example", "step"] = "example"
    noise: Noise = "preactivation"


def make(
    chosen: Objective,
    loss: Callable[..., Any],
    model: Any,
    frozen: tuple[str, ...],
    variables: Any,
    x: Any,
) -> Any:
    """The objective of the model, of which the modules `frozen` do not move.

    Args:
      loss: what `losses.find_loss` returns.
      variables, x: shapes of the model's variables and of a batch's inputs.

    Raises ConfigError where they do not go together.
    """
    own = hasattr(model, "objective")
    if not own and not losses.is_objective(loss):
        loss = of_examples(loss, chosen.losses)
        return hold(frozen, supervised(model, loss, chosen.noise, variables, x))
    if chosen != Objective():
        whose = "this model" if own else "config.loss"
        raise ConfigError(f"config.objective: {whose} has an objective of its own")
    objective = model.objective() if own else loss
    if frozen and isinstance(objective, Energy):
        raise ConfigError("config.frozen: this model has an energy")
    return hold(frozen, objective)


def of_examples(function: losses.Function, each_of: str) -> losses.Function:
    """The loss of each example (B,), its labels' mean; or of each label (B, T)."""

    @functools.wraps(function)
    def found(outputs: Any, label: jax.Array) -> jax.Array:
        each = function(outputs, label)
        if each_of == "example":
            return each.mean(range(1, each.ndim))
        if each.ndim != 2:
            raise ValueError(
                "config.objective.losses='step' needs labels (B, T), one for each step; "
                f"the data set has {label.shape}"
            )
        return each

    return found
