"""How far noise moves a value of 16 bits, whose sum with it is rounded."""

import jax
import jax.numpy as jnp

from bpfree.program import passes
from bpfree.sampling.scale import scaled


def as_felt(signal: jax.Array, sigma: jax.Array, value: jax.Array, signs: bool):
    """A signal of noise of this scale, as it moved the values of its node.

    Of 16 bits a sum is rounded to the next number, and signs move a value by whole
    spacings: by .6 to 1.6 sigma where sigma is near a spacing, and not at all where it is
    far less: there is no signal then. Normals need no such care: they meet all roundings.

    Args:
      signs: whether the noise is +-1.
    """
    if not signs or value.dtype.itemsize > 2:
        return signal
    return _over(signal, felt(sigma, value))


@jax.jit  # one function in the program for all values of a shape
def felt(sigma: jax.Array, value: jax.Array) -> jax.Array:
    """By how much +-sigma moves a value after rounding, over sigma; float32."""
    step = scaled(sigma, jnp.ones(value.shape, jnp.float32))
    up, down = (passes.rounded_sum(value, way) for way in (step, -step))
    return (up.astype(jnp.float32) - down.astype(jnp.float32)) / (2 * step)


def _over(signal: jax.Array, share: jax.Array) -> jax.Array:
    moved = share > 0
    return jnp.where(moved, signal / jnp.where(moved, share, 1.0), 0.0)
