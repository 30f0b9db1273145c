"""The model of a config: one of bpfree's, or one of the user's own.

A model is an object with `init(key, x) -> variables`, whose "params" are trained, and
`apply(variables, x) -> logits`; every Linen module is one. A pair of plain functions
`init(key, x) -> params` and `apply(params, x) -> logits` becomes one here, and so does an
NNX module.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

import bpfree.models
from bpfree.training import own
from bpfree.training.names import ConfigError, call, member, signature_of


class Plain(NamedTuple):
    """A pair of functions as a model: (key, x) -> params, and (params, x) -> logits."""

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

    `num_classes` goes to constructors that have a parameter of this name, and a key to
    those with `rngs`, as NNX modules have.
    """
    make = constructor(section["name"])
    parameters = signature_of(make).parameters
    given: dict[str, Any] = {"num_classes": num_classes}
    given = {k: v for k, v in given.items() if k in parameters}
    rest = {k: v for k, v in section.items() if k != "name"}
    if "rngs" in parameters:
        return _nnx(
            lambda rngs: call(make, rest, "config.model", {**given, "rngs": rngs})
        )
    made = call(make, rest, "config.model", given)
    if isinstance(made, tuple) and len(made) == 2 and all(map(callable, made)):
        return Plain(*made)
    if not (
        callable(getattr(made, "init", None)) and callable(getattr(made, "apply", 0))
    ):
        raise ConfigError(
            f"config.model: {section['name']} makes a {type(made).__name__}, no model: "
            "return a Linen or NNX module, or a pair of functions init(key, x) -> params "
            "and apply(params, x) -> logits"
        )
    return made


def _nnx(make: Callable[[Any], Any]) -> Plain:
    """An NNX module as a model; its params are a plain dict."""
    from flax import nnx  # slow to import

    def init(key: jax.Array, x: Any) -> Any:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    shape = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef, _, rest = nnx.split(shape, nnx.Param, ...)  # type: ignore[misc]
    if jax.tree.leaves(rest):
        kinds = {type(v).__name__ for _, v in nnx.to_flat_state(rest)}
        raise ConfigError(
            f"config.model: this NNX module has state besides nnx.Param "
            f"({', '.join(sorted(kinds))}); the launcher trains NNX modules without"
        )
    return Plain(init, lambda params, x: nnx.merge(graphdef, nnx.State(params), rest)(x))
