"""Flax NNX models that nobody edited.

What a model would change without being asked to is guarded: modules of a copy of it are
retyped, each to a subclass of its class whose `__call__` raises. The copy is an NNX
module like any other.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# Modules that draw from their own random stream, `self.rngs`.
DRAWING = (nnx.Dropout, nnx.MultiHeadAttention)

Method = Callable[..., Any]


def bind(
    model: nnx.Module,
    rngs: tuple[str, ...],
    mutable: tuple[Any, ...],
    options: dict[str, Any],
) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """`(params, state, x, key) -> (outputs, new state)`; see `bpfree.adapters`."""
    graphdef, expected, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    expected, changing = _paths(expected), _paths(nnx.state(model, mutable))
    rest = jax.tree.map(jnp.copy, rest)
    _check_streams(model, rngs)

    def bound(params, state, x, key):
        _check_state("params", params, expected, "nnx.Param")
        copy = nnx.merge(graphdef, params, rest, copy=True)
        if mutable:
            _check_state("state", state, changing, f"nnx.Any{mutable}")
        if state:
            nnx.update(copy, state)
        if not mutable:
            _guard_norms(copy)
        _guard_streams(copy, rngs)
        if rngs:
            keys = dict(zip(rngs, jax.random.split(key, len(rngs)), strict=True))
            nnx.reseed(copy, policy="match_shape", **keys)
        outputs = copy(x, **options)
        return outputs, nnx.state(copy, mutable)

    return bound


def _paths(state: nnx.State) -> set[Any]:
    return set(nnx.to_flat_state(state).paths)


def _check_state(what: str, given: Any, paths: set[Any], types: str) -> None:
    if not isinstance(given, nnx.State) or _paths(given) != paths:
        raise ValueError(f"{what} must be nnx.state(model, {types}) of this model")


def _retype(module: nnx.Module, wrap: Callable[[Method], Method], note: Any) -> None:
    """Wrap the methods of one instance, which find `note` in `self._bpfree`."""
    module._bpfree = note  # type: ignore[attr-defined]
    module.__class__ = _subclass(type(module), wrap)


@functools.cache
def _subclass(cls: type, wrap: Callable[[Method], Method]) -> type:
    methods = {"__doc__": cls.__doc__, "__call__": wrap(cls.__call__)}  # type: ignore[attr-defined]
    return type(cls.__name__, (cls,), methods)


# --------------------------------------------------------------------- batch statistics


def _guard_norms(model: nnx.Module) -> None:
    """Make norms raise that move running statistics which nobody asked for."""
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, nnx.BatchNorm):
            _retype(module, _still, "/".join(map(str, path)) or type(module).__name__)


def _still(method: Method) -> Method:
    def still(self, x, use_running_average=None, *, mask=None):
        flag = use_running_average
        running = self.use_running_average if flag is None else flag
        if running is False:
            raise ValueError(
                f"{self._bpfree} changes its running statistics, which would be lost: "
                "pass bpfree.supervised(..., mutable=(nnx.BatchStat,)), or call "
                "model.eval() before."
            )
        return method(self, x, flag, mask=mask)

    return still


# ------------------------------------------------------------------------ random streams


def _check_streams(model: nnx.Module, rngs: tuple[str, ...]) -> None:
    streams = (s for _, s in nnx.iter_graph(model) if isinstance(s, nnx.RngStream))
    tags = {stream.tag for stream in streams}
    if unknown := set(rngs) - tags:
        raise ValueError(
            f"rngs={rngs}: the model has no random streams {sorted(unknown)}; it has "
            f"{sorted(tags)}"
        )


def _guard_streams(model: nnx.Module, rngs: tuple[str, ...]) -> None:
    """Make modules that draw from a stream which no key of the objective feeds raise.

    Its key would be part of the closure: the same mask at every step.
    """
    for _, module in list(nnx.iter_modules(model)):
        stream = getattr(module, "rngs", None)
        if isinstance(module, DRAWING) and getattr(stream, "tag", None) not in rngs:
            _retype(module, _frozen, ())


def _frozen(method: Method) -> Method:
    def guarded(self, *args, **kwargs):
        count = None if self.rngs is None else self.rngs.count.get_value()
        out = method(self, *args, **kwargs)
        if self.rngs is not None and self.rngs.count.get_value() is not count:
            raise ValueError(
                f"{type(self).__name__} draws from the random stream {self.rngs.tag!r}, "
                "the same at every step: pass bpfree.supervised(..., "
                f"rngs=({self.rngs.tag!r},)), or call model.eval() before."
            )
        return out

    return guarded
