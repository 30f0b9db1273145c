"""The statistics of a batch, as both of Flax's BatchNorm modules compute them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.nodes import hold


def held_statistics(norm: Any, x: jax.Array, mask: Any, path: str):
    """(mean, var) of the features of `x`, held under `path`; see `bpfree.hold`.

    Args:
      norm: a BatchNorm of Linen or NNX, for its options.
      x: (B, ...); mask: broadcastable to it, or None.
    """
    mean, var = _statistics(norm, x, mask)
    return hold(mean, f"{path}/mean"), hold(var, f"{path}/var")


def _statistics(norm: Any, x: jax.Array, mask: Any) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.result_type(x) if norm.dtype is None else norm.dtype
    if getattr(norm, "force_float32_reductions", True):
        dtype = jnp.promote_types(dtype, jnp.float32)
    x = x.astype(dtype)
    features = (norm.axis,) if isinstance(norm.axis, int) else norm.axis
    axes = tuple(set(range(x.ndim)) - {axis % x.ndim for axis in features})
    where = None if mask is None else jnp.asarray(mask, bool)

    def average(values):
        local = values.mean(axes, where=where)
        if norm.axis_name is None:
            return local
        groups = norm.axis_index_groups
        return lax.pmean(local, norm.axis_name, axis_index_groups=groups)

    mean = average(x)
    if norm.use_fast_variance:
        return mean, jnp.maximum(0, average(jnp.square(x)) - jnp.square(mean))
    return mean, average(jnp.square(x - jnp.expand_dims(mean, axes)))
