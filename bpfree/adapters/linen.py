"""Flax Linen models that nobody edited."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn


def bind(
    model: nn.Module,
    rngs: tuple[str, ...],
    mutable: tuple[str, ...],
    options: dict[str, Any],
) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """`(params, state, x, key) -> (outputs, new state)`; see `bpfree.adapters`."""

    def bound(params, state, x, key):
        if isinstance(params, Mapping) and set(params) == {"params"}:
            raise ValueError(
                'params is a whole variables dict; pass model.init(...)["params"]'
            )
        keys = jax.random.split(key, len(rngs)) if rngs else ()
        streams = dict(zip(rngs, keys, strict=True))
        variables = {**state, "params": params}
        return model.apply(variables, x, rngs=streams, mutable=list(mutable), **options)

    return bound
