r"""The over-relaxation factor w of a sweep, from how the sweeps before it contracted.

With mu the spectral radius of the Jacobi sweep of a chain, a sequential sweep in either
direction contracts by lambda, where

    (lambda + w - 1)^2 = lambda w^2 mu^2,    best at w = 2 / (1 + sqrt(1 - mu^2))

(Young 1954), so the observed lambda tells mu, and mu the next w.
"""

import jax
import jax.numpy as jnp

from bpfree.equilibrium.relaxation import Relaxation

_LARGEST_RADIUS = 0.98
_FORGET = 0.3


def factor_of(settings: Relaxation, radius: jax.Array, dtype) -> jax.Array:
    """w of this update, by the running mean of mu."""
    if settings.factor is not None:
        return jnp.asarray(settings.factor, dtype)
    if settings.ordering == "jacobi":
        return jnp.ones((), dtype)
    return best_factor(radius.astype(dtype))


def next_radius(radius: jax.Array, contraction: jax.Array, factor) -> jax.Array:
    """The running mean of mu, with what the last sweeps say.

    Over-relaxed beyond the best factor, a sweep contracts by w - 1 whatever mu is, so
    each observation is shrunk a little: the mean can come down again.
    """
    seen = 0.98 * observed_radius(contraction, factor)
    mean = radius + _FORGET * (seen.astype(jnp.float32) - radius)
    return jnp.where(jnp.isfinite(mean), mean, radius)


def best_factor(radius: jax.Array) -> jax.Array:
    """Young's over-relaxation factor for a Jacobi sweep of this spectral radius."""
    return 2 / (1 + jnp.sqrt(1 - jnp.square(jnp.clip(radius, 0, _LARGEST_RADIUS))))


def observed_radius(contraction: jax.Array, factor: jax.Array) -> jax.Array:
    """The Jacobi spectral radius at which sequential sweeps contract as observed."""
    rate = jnp.clip(contraction, 1e-6, 1.0)
    radius = (rate + factor - 1) / (factor * jnp.sqrt(rate))
    return jnp.clip(radius, 0, _LARGEST_RADIUS)
