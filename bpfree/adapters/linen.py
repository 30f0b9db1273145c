"""Flax Linen models that nobody edited; the batch statistics of BatchNorm are held."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from bpfree.adapters.batch_norm import held_statistics


def tag_linen(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with the batch statistics of all Linen BatchNorms that run inside it held.

    Nodes need no tags, they are found; see `bpfree.hold` for what holding means.

    Args:
      fn: any function that applies Linen modules, such as `model.apply`.

    Returns:
      A function of the same arguments.

    Example:
        >>> from flax import linen as nn
        >>> model = nn.BatchNorm(use_running_average=False)
        >>> variables = model.init(jax.random.key(0), batch["x"])
        >>> apply = bpfree.tag_linen(model.apply)
        >>> apply(variables, batch["x"], mutable=["batch_stats"])[0].shape
        (5, 3)
    """

    def held(*args, **kwargs):
        with nn.intercept_methods(_holding):
            return fn(*args, **kwargs)

    return held


def bind(
    model: nn.Module,
    rngs: tuple[str, ...],
    mutable: tuple[str, ...],
    options: dict[str, Any],
) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """`(params, state, x, key) -> (outputs, new state)`; see `bpfree.adapters`."""
    apply = tag_linen(model.apply)

    def bound(params, state, x, key):
        if isinstance(params, Mapping) and set(params) == {"params"}:
            raise ValueError(
                'params is a whole variables dict; pass model.init(...)["params"]'
            )
        keys = jax.random.split(key, len(rngs)) if rngs else ()
        streams = dict(zip(rngs, keys, strict=True))
        variables = {**state, "params": params}
        return apply(variables, x, rngs=streams, mutable=list(mutable), **options)

    return bound


def _holding(next_fun, args, kwargs, context):
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
        return _batch_norm(context.module, next_fun, *args, **kwargs)
    return next_fun(*args, **kwargs)


def _batch_norm(norm: nn.BatchNorm, next_fun, x, use_running_average=None, *, mask=None):
    """The norm with its batch statistics held."""
    flag = use_running_average
    running = nn.merge_param("use_running_average", norm.use_running_average, flag)
    plain = next_fun(x, flag, mask=mask)  # moves the running statistics
    if running or norm.is_initializing():
        return plain
    mean, var = held_statistics(norm, x, mask, "/".join(norm.path))
    alone = norm.clone(parent=None, name=None, use_running_average=True)
    statistics = {"batch_stats": {"mean": mean, "var": var}}
    return alone.apply({**norm.variables, **statistics}, x)
