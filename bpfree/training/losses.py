"""What a run minimises and what it measures: config.loss and config.metrics.

A loss is a function of (outputs, label) whose result begins with the axis of the batch:
by name, "squared_error", or any other, "./mine.py:loss" or "optax:huber_loss". So is a
metric, which may also give one number for all examples; its value is the mean.

A loss whose first parameter is called `params` is a whole objective instead, `(params,
batch)` or `(params, batch, key)` -> losses (B,), or (losses, state). It gets the model if
it has a parameter `model`.
"""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.program.trace import arguments
from bpfree.training import own
from bpfree.training.loss_functions import LOSSES, METRICS, Function
from bpfree.training.names import ConfigError, bind, unknown

LOSS = "loss"
"""The metric that is the loss itself, whichever it is."""
_FIRST = "cross_entropy"
_DEFAULT = {_FIRST: "accuracy", "squared_error": "absolute_error"}


class Metric(NamedTuple):
    """What is measured on validation and test.

    Attributes:
      name: in the log, "validation/<name>".
      lower: whether lower values are better.
      function: of (outputs, label); None is the loss itself.
    """

    name: str
    lower: bool
    function: Function | None


def read_loss(section: Any) -> dict[str, Any]:
    """The config's entry `loss` as {"name": ..., **arguments}, or {}; ConfigError."""
    return named_section(section, "config.loss") if section else {}


def read_metrics(entry: Any) -> tuple[dict[str, Any], ...]:
    """The config's entry `metrics`, one or many, as sections; raises ConfigError."""
    several = entry if isinstance(entry, (list, tuple)) else [entry]
    return tuple(named_section(section, "config.metrics") for section in several)


def named_section(section: Any, where: str) -> dict[str, Any]:
    """{"name": ..., **arguments} of a section, or of a name alone; raises ConfigError."""
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        raise ConfigError(
            f"{where}={section!r} has the wrong type: a name, or a dict with 'name'"
        )
    return dict(section)


def find_loss(section: Mapping[str, Any], model: Any) -> Callable[..., Any]:
    """The loss: of (outputs, label), or a whole objective; raises ConfigError."""
    found = _find(section, LOSSES, "config.loss")
    if not is_objective(found):
        return _of_outputs(found, section, "config.loss", least=1)
    given = {"model": model} if "model" in inspect.signature(found).parameters else {}
    rest = {k: v for k, v in section.items() if k != "name"}
    return bind(found, rest, "config.loss", ("params", "batch", "key"), given)


def is_objective(function: Callable[..., Any]) -> bool:
    """Whether a function is a whole objective: its first parameter is `params`."""
    return next(iter(inspect.signature(function).parameters), "") == "params"


def find_metrics(
    loss: Mapping[str, Any], sections: Sequence[Mapping[str, Any]]
) -> tuple[Metric, ...]:
    """The metrics of a config, the first of which says which run is best.

    Without any: accuracy for cross-entropy, the absolute error for the squared one, and
    else the loss itself. Raises ConfigError.
    """
    default = {"name": _DEFAULT.get(loss.get("name", _FIRST), LOSS)}
    return tuple(_metric(dict(section)) for section in sections or (default,))


def metric_of(loss: Mapping[str, Any]) -> Metric:
    """The config's loss as a metric, under its name."""
    return Metric(_member(loss.get("name", _FIRST)), True, None)


def _member(name: str) -> str:
    return name.rpartition(":")[2]


def _metric(section: dict[str, Any]) -> Metric:
    name = section["name"]
    if name == LOSS:
        return Metric(LOSS, True, None)
    lower = section.pop("lower_is_better", None if own.is_own(name) else name in LOSSES)
    if not isinstance(lower, bool):
        raise ConfigError(
            f"config.metrics: say of {name} whether lower is better: "
            f"{{'name': {name!r}, 'lower_is_better': True}} or False"
        )
    function = _find(section, {**METRICS, LOSS: None}, "config.metrics")
    function = _of_outputs(function, section, "config.metrics")
    return Metric(_member(name), lower, function)


def _find(section: Mapping[str, Any], choices: Mapping[str, Any], where: str) -> Any:
    name = section.get("name", _FIRST)
    if own.is_own(name):
        return own.find(name, where)
    if name not in choices:
        raise unknown(f"{where}:", name, choices)
    return choices[name]


def _of_outputs(
    function: Function, section: Mapping[str, Any], where: str, least: int = 0
) -> Function:
    """The function of (outputs, label), with the section's other entries bound.

    It raises ValueError where its result is not like the labels, or like their first
    axes: outputs (B, 1) minus labels (B,) are (B, B). It has `least` of them or more: a
    loss that is the mean of the batch would have all noise credited with one number.
    """
    positional = tuple(inspect.signature(function).parameters)[:2]
    rest = {k: v for k, v in section.items() if k != "name"}
    bound = bind(function, rest, where, positional)

    @functools.wraps(function)
    def checked(outputs: Any, label: jax.Array) -> jax.Array:
        found = bound(outputs, label)
        shape = getattr(found, "shape", None)
        if shape is None or shape != label.shape[: len(shape)]:
            what = "no shape" if shape is None else f"shape {shape}"
            raise ValueError(
                f"{section.get('name')} of outputs {jax.tree.map(jnp.shape, outputs)} "
                f"and labels {label.shape} has {what}: it must be one number for each "
                "example, or for each label"
            )
        if found.ndim < least:
            raise ValueError(
                f"{section.get('name')} gives one number for the whole batch: leave the "
                "mean over the examples out, since each answers for its own loss"
            )
        return found

    return checked


def measure(
    metrics: Sequence[Metric], model: Any, loss: Callable[..., Any]
) -> Callable[[Any, Any, Any], dict[str, jax.Array]]:
    """`(params, model_state, batch) -> {metric: float32 ()}`, in order; traceable."""

    def losses(params, model_state, batch):
        batch = {**batch, "state": model_state}
        found = loss(*arguments(loss, params, batch, jax.random.key(0)))
        return found[0] if isinstance(found, tuple) else found

    def measured(params, model_state, batch):
        outputs = functools.cache(
            lambda: model.apply({**model_state, "params": params}, batch["x"])
        )

        def value(function):
            if function is None and is_objective(loss):
                return losses(params, model_state, batch)
            return (function or loss)(outputs(), batch["label"])

        values = ((m.name, jnp.mean(value(m.function))) for m in metrics)
        return OrderedDict((name, v.astype(jnp.float32)) for name, v in values)

    return measured
