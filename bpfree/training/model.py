"""The model of a config: one of bpfree's, or one of the user's own.

A model is an object with `init(key, x) -> variables`, whose "params" are trained, and
`apply(variables, x) -> outputs`; every Linen module is one. A pair of plain functions
`init(key, x) -> params` and `apply(params, x) -> outputs` becomes one here, and so does
an NNX module.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.errors import InvalidRngError

import bpfree
import bpfree.models
from bpfree.training import own
from bpfree.training.names import ConfigError, call, member, signature_of


class Plain(NamedTuple):
    """A pair of functions as a model: (key, x) -> params, and (params, x) -> outputs."""

    make: Callable[[jax.Array, Any], Any]
    call: Callable[[Any, Any], Any]

    def init(self, key: jax.Array, x: Any) -> dict[str, Any]:
        return {"params": self.make(key, x)}

    def apply(self, variables: Mapping[str, Any], x: Any) -> Any:
        return self.call(variables["params"], x)


def constructor(name: str) -> Callable[..., Any]:
    """The class or function that a config's `model.name` stands for; ConfigError."""
    if own.is_own(name):
        return own.find(name, "config.model")
    return member(bpfree.models, name, "config.model.name").Model


def build(section: Mapping[str, Any], num_classes: int) -> Any:
    """The model of `config.model`; raises ConfigError.

    The number of outputs goes to constructors that have a parameter `num_classes` or
    `num_outputs`, and a key to those with `rngs`, as NNX modules have.
    """
    make = constructor(section["name"])
    parameters = signature_of(make).parameters
    sizes = ("num_classes", "num_outputs")
    given: dict[str, Any] = {k: num_classes for k in sizes if k in parameters}
    rest = {k: v for k, v in section.items() if k != "name"}
    if "rngs" in parameters:
        from bpfree.training import nnx_model  # slow to import

        return nnx_model.model(
            lambda rngs: call(make, rest, "config.model", {**given, "rngs": rngs}),
            training_options(make),
        )
    made = call(make, rest, "config.model", given)
    if isinstance(made, tuple) and len(made) == 2 and all(map(callable, made)):
        return _plain(*made, section["name"])
    if not (
        callable(getattr(made, "init", None)) and callable(getattr(made, "apply", 0))
    ):
        raise ConfigError(
            f"config.model: {section['name']} makes a {type(made).__name__}, no model: "
            "return a Linen or NNX module, or a pair of functions init(key, x) -> params "
            "and apply(params, x) -> outputs (of Equinox, see examples/other_frameworks)"
        )
    return made


def _plain(init: Callable[..., Any], apply: Callable[..., Any], name: str) -> Plain:
    """The pair as a model; ConfigError if apply does not take (params, x)."""
    taken = signature_of(apply)
    try:
        taken.bind("params", "x")
        fits = "rng" not in taken.parameters  # of Haiku: it would be x
    except TypeError:
        fits = False
    if not fits:
        raise ConfigError(
            f"config.model: apply of {name} takes ({', '.join(taken.parameters)}), and "
            "must take (params, x). Of Haiku, return "
            "hk.without_apply_rng(hk.transform(f)); with random numbers or a state, see "
            "examples/other_frameworks"
        )
    return Plain(init, apply)


TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""What the usual parameters of a module's call are in a training pass."""


def training_options(made: Any) -> dict[str, Any]:
    """What a module's call takes in training: those of `TRAINING` that it has."""
    kind = made if isinstance(made, type) else type(made)
    parameters = getattr(inspect.signature(kind.__call__), "parameters", {})
    return {name: value for name, value in TRAINING.items() if name in parameters}


def supervised(
    model: Any, loss: Callable[..., Any], noise: Any, variables: Any, x: Any
) -> Callable[..., Any]:
    """The model's objective, `(params, batch[, key]) -> losses`, or `(losses, state)`.

    Args:
      loss: of (outputs, label).
      noise: where nodes stand, as in `bpfree.supervised`.
      variables: shapes of the model's variables.
      x: a batch's inputs, or their shape.

    Raises ConfigError: noise of a model that is no module.
    """
    if isinstance(model, nn.Module):
        return bpfree.supervised(
            model,
            loss,
            noise=noise,
            mutable=tuple(k for k in variables if k != "params"),
            rngs=_streams(model, variables, x),
            **training_options(model),
        )
    if hasattr(model, "supervised"):
        return model.supervised(loss, noise)
    if noise != "preactivation":
        raise ConfigError("config.objective.noise is for Linen and NNX modules")
    return lambda params, batch: loss(
        model.apply({"params": params}, batch["x"]), batch["label"]
    )


def _streams(model: nn.Module, variables: Any, x: Any) -> tuple[str, ...]:
    """("dropout",) if the module draws from this stream in training."""
    options = training_options(model)
    try:
        jax.eval_shape(
            lambda v, x: model.apply(v, x, mutable=True, **options), variables, x
        )
    except InvalidRngError:
        return ("dropout",)
    return ()
