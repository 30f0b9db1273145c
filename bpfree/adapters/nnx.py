"""Mark the nodes of Flax NNX models that nobody edited.

The layers of a copy of the model are retyped, each to a subclass of its own class whose
methods put the tags in. The copy is an NNX module like any other, so that the tags
survive `nnx.RNN`, `nnx.scan`, `nnx.vmap` and `nnx.remat`, which split and merge it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bpfree.nodes import kernel_input, node

# Modules whose output is a weight product: (class, name of the kernel parameter).
PRODUCTS = (
    (nnx.Linear, "kernel"),
    (nnx.LinearGeneral, "kernel"),
    (nnx.Einsum, "kernel"),
    (nnx.Conv, "kernel"),
    (nnx.ConvTranspose, "kernel"),
    (nnx.Embed, "embedding"),
)

# Modules that draw from their own random stream, `self.rngs`.
DRAWING = (nnx.Dropout, nnx.MultiHeadAttention)

Where = Callable[[nnx.Module], bool]
Method = Callable[..., Any]


def bind(
    model: nnx.Module, where: Where | None, rngs: tuple[str, ...], options: dict[str, Any]
) -> Callable[[Any, Any, Any], Any]:
    """`(params, x, key) -> outputs`; see `bpfree.adapters`."""
    graphdef, expected, rest = _split(model)
    rest = jax.tree.map(jnp.copy, rest)
    paths = _paths(expected)
    _check_streams(model, rngs)

    def bound(params, x, key):
        if not isinstance(params, nnx.State) or _paths(params) != paths:
            raise ValueError("params must be nnx.state(model, nnx.Param) of this model")
        copy = nnx.merge(graphdef, params, rest, copy=True)
        _mark_products(copy, where)
        _guard_streams(copy, rngs)
        if rngs:
            keys = dict(zip(rngs, jax.random.split(key, len(rngs)), strict=True))
            nnx.reseed(copy, policy="match_shape", **keys)
        return copy(x, **options)

    return bound


def tagged(model: nnx.Module, where: Where | None) -> nnx.Module:
    """See `bpfree.tag_nnx`."""
    copy = nnx.clone(model)
    _mark_products(copy, where)
    return copy


def _split(model: nnx.Module) -> Any:
    return nnx.split(model, nnx.Param, ...)  # type: ignore[misc]


def _paths(state: nnx.State) -> set[Any]:
    return set(nnx.to_flat_state(state).paths)


# ----------------------------------------------------------------------- weight products


def _mark_products(model: nnx.Module, where: Where | None) -> None:
    """Retype the layers of `model`, in place."""
    for path, module in list(nnx.iter_modules(model)):
        kernels = (kernel for cls, kernel in PRODUCTS if isinstance(module, cls))
        kernel = next(kernels, None)
        if kernel is None or (where is not None and not where(module)):
            continue
        name = "/".join(map(str, path))
        paths = (name or type(module).__name__, "/".join(map(str, (*path, kernel))))
        _retype(module, _product, paths)


def _product(method: Method) -> Method:
    def marked(self, x, *args, **kwargs):
        name, kernel = self._bpfree
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            x = kernel_input(x, kernel)
        return node(method(self, x, *args, **kwargs), name)

    return marked


def _retype(module: nnx.Module, wrap: Callable[[Method], Method], note: Any) -> None:
    """Wrap the methods of one instance, which find `note` in `self._bpfree`."""
    module._bpfree = note  # type: ignore[attr-defined]
    module.__class__ = _subclass(type(module), wrap)


@functools.cache
def _subclass(cls: type, wrap: Callable[[Method], Method]) -> type:
    names = [name for name in ("__call__", "attend") if hasattr(cls, name)]
    methods = {name: wrap(getattr(cls, name)) for name in names}
    return type(cls.__name__, (cls,), {"__doc__": cls.__doc__, **methods})


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
