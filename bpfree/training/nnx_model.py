"""An NNX module as a model of the launcher: its variables are plain dicts.

`params` are its nnx.Param, and "state" all other variables but those of random streams,
the running statistics of BatchNorm for instance. Dropout draws from the step's key.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

import bpfree

_STATE = "state"


class Model(NamedTuple):
    """A module made by `make(rngs)`.

    Attributes:
      module: one such, for its structure; its values are not used.
      kinds: types of the variables in its state.
      options: of a training pass, {"train": True} if the module's call takes it.
    """

    make: Callable[[nnx.Rngs], nnx.Module]
    module: nnx.Module
    kinds: tuple[Any, ...]
    options: Mapping[str, Any]

    def init(self, key: jax.Array, x: Any) -> dict[str, Any]:
        """{"params": ..., "state": ...}; the latter if there is any."""
        made = self.make(nnx.Rngs(key))
        state = {_STATE: _dict(nnx.state(made, self.kinds))} if self.kinds else {}
        return {"params": _dict(nnx.state(made, nnx.Param)), **state}

    def apply(self, variables: Mapping[str, Any], x: Any) -> Any:
        """The outputs in evaluation mode, as `module.eval()` sets it."""
        copy = nnx.clone(self.module)
        nnx.update(copy, nnx.State(variables["params"]))
        if self.kinds:
            nnx.update(copy, nnx.State(variables[_STATE]))
        copy.eval()
        return copy(x)  # type: ignore[operator]

    def supervised(self, loss: Callable[..., Any], noise: Any) -> Callable[..., Any]:
        """`(params, batch[, key]) -> losses`, or `(losses, state)`, in training mode."""
        copy = nnx.clone(self.module)
        copy.train()
        streams = {s.tag for _, s in nnx.iter_graph(copy) if isinstance(s, nnx.RngStream)}
        loss_fn = bpfree.supervised(
            copy,
            loss,
            noise=noise,
            mutable=self.kinds,
            rngs=sorted(streams),
            **self.options,
        )

        def trained(params, batch, *key):
            state = nnx.State(batch["state"].get(_STATE, {}))
            found = loss_fn(nnx.State(params), {**batch, "state": state}, *key)
            return (found[0], {_STATE: _dict(found[1])}) if self.kinds else found

        if streams:
            return lambda params, batch, key: trained(params, batch, key)
        return lambda params, batch: trained(params, batch)


def model(make: Callable[[nnx.Rngs], nnx.Module], options: Mapping[str, Any]) -> Model:
    """The model of `make(rngs)`; its own random streams are those of `rngs`.

    Plain arrays among its attributes are constants, as they are in `make(nnx.Rngs(0))`.
    """
    with jax.ensure_compile_time_eval():  # the caller may be traced
        module = make(nnx.Rngs(0))
    rest = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
    variables = [v for _, v in rest if isinstance(v, nnx.Variable)]
    kinds = dict.fromkeys(type(v) for v in variables if not isinstance(v, nnx.RngState))
    return Model(make, module, tuple(kinds), options)


def _dict(state: nnx.State) -> dict[str, Any]:
    return nnx.to_pure_dict(state)
