"""How the loss is taken: config.objective = {"losses": "step", "noise": "auto"}.

By default one of each example, with noise on the outputs of weight products, which are
found in the model's program. A model with a method `objective` (an energy, a graph's
nodes) says itself what it minimises.
"""

from collections.abc import Callable, Mapping
from typing import Any

from bpfree.adapters import NOISE
from bpfree.equilibrium.energy import Energy
from bpfree.training import frozen, losses
from bpfree.training.model import supervised
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
    loss: Callable[..., Any],
    model: Any,
    still: tuple[str, ...],
    variables: Any,
    x: Any,
) -> Any:
    """The objective of the model, of which the modules `still` do not move.

    Args:
      section: what `check` returns.
      loss: what `losses.find_loss` returns.
      variables, x: shapes of the model's variables and of a batch's inputs.

    Raises ConfigError where they do not go together.
    """
    own = hasattr(model, "objective")
    if not own and not losses.is_objective(loss):
        loss = losses.of_examples(loss, section.get("losses", "example"))
        noise = section.get("noise", "preactivation")
        return frozen.hold(still, supervised(model, loss, noise, variables, x))
    if section:
        whose = "this model" if own else "config.loss"
        raise ConfigError(f"config.objective: {whose} has an objective of its own")
    objective = model.objective() if own else loss
    if still and isinstance(objective, Energy):
        raise ConfigError("config.frozen: this model has an energy")
    return frozen.hold(still, objective)
