"""Pooling over square windows, by reshaping: (B, H, W, C) -> (B, H/s, W/s, C).

Rows and columns that fill no whole window are left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Pool(NamedTuple):
    """A pooling, as `bpfree.layered` takes it with a convolution.

    Attributes:
      name: for messages.
      fn: `z (B, H, W, C) -> (B, H/s, W/s, C)`.
      pull: `(z, v) -> (dfn/dz)^T v` at z.

    Example:
        >>> pool = bpfree.equilibrium.average_pool(2)
        >>> z = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> pool.pull(z, jnp.ones((1, 1, 1, 1))).ravel().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    name: str
    fn: Callable[[jax.Array], jax.Array]
    pull: Callable[[jax.Array, jax.Array], jax.Array]


def average_pool(window: int = 2) -> Pool:
    """The mean of each window.

    Args:
      window: s, side of the square window. Rows and columns that fill no whole window are
        left out.

    Returns:
      A `bpfree.equilibrium.Pool`.

    Example:
        >>> z = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> round(float(bpfree.equilibrium.average_pool(2).fn(z)[0, 0, 0, 0]), 2)
        1.5
    """
    return _by_autodiff("average_pool", lambda z: _windows(z, window).mean((2, 4)))


def softmax_pool(window: int = 2, temperature: float = 1.0) -> Pool:
    """The softmax-weighted mean, P = sum_j z_j exp(z_j/T) / sum_j exp(z_j/T).

    Holomorphic. T -> 0 is the maximum, T -> inf the mean.

    Args:
      window: s, side of the square window. Rows and columns that fill no whole window are
        left out.
      temperature: T, positive.

    Returns:
      A `bpfree.equilibrium.Pool`.

    Raises:
      ValueError: a temperature that is not positive.

    Source: Laborieux and Zenke 2022, arXiv:2209.00530.

    Example:
        >>> z = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> round(float(bpfree.equilibrium.softmax_pool(2).fn(z)[0, 0, 0, 0]), 2)
        2.49
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")

    def weights(z):
        w = _windows(z, window)
        top = lax.stop_gradient(w.real.max((2, 4), keepdims=True))
        e = jnp.exp((w - top.astype(w.dtype)) / temperature)
        return w, e / e.sum((2, 4), keepdims=True)

    def fn(z):
        w, p = weights(z)
        return (w * p).sum((2, 4))

    def pull(z, v):
        w, p = weights(z)
        mean = (w * p).sum((2, 4), keepdims=True)
        slope = p * (1 + (w - mean) / temperature)
        return _spread(slope * v[:, :, None, :, None], z)

    return Pool("softmax_pool", fn, pull)


def max_pool(window: int = 2) -> Pool:
    """The maximum of each window: not holomorphic, for real nudging only.

    Args:
      window: s, side of the square window. Rows and columns that fill no whole window are
        left out.

    Returns:
      A `bpfree.equilibrium.Pool`.

    Example:
        >>> z = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> round(float(bpfree.equilibrium.max_pool(2).fn(z)[0, 0, 0, 0]), 2)
        3.0
    """
    return _by_autodiff("max_pool", lambda z: _windows(z, window).max((2, 4)))


def _by_autodiff(name: str, fn: Callable[[jax.Array], jax.Array]) -> Pool:
    return Pool(name, fn, lambda z, v: jax.vjp(fn, z)[1](v)[0])


def _windows(z: jax.Array, s: int) -> jax.Array:
    """(B, H, W, C) -> (B, H/s, s, W/s, s, C)."""
    b, h, w, c = z.shape
    shape = (b, h // s, s, w // s, s, c)
    return z[:, : h // s * s, : w // s * s].reshape(shape)


def _spread(windows: jax.Array, like: jax.Array) -> jax.Array:
    """The transpose of `_windows`: zeros where no window reaches."""
    b, h, s, w, _, c = windows.shape
    z = windows.reshape(b, h * s, w * s, c)
    missing = [(0, n - m) for n, m in zip(like.shape, z.shape, strict=True)]
    return jnp.pad(z, missing) if z.shape != like.shape else z
