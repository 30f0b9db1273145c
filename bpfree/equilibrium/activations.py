"""Activations sigma of the update h <- sigma(dPhi/dh).

The distance from the real axis to the nearest pole limits the radius of complex nudging:
pi/4 for `shifted_sigmoid`, pi for `dsilu`. `hard_sigmoid` is for real nudging only.
"""

import jax
import jax.numpy as jnp
from jax import lax


def shifted_sigmoid(z: jax.Array) -> jax.Array:
    """1 / (1 + exp(-4 z + 2)): slope 1 at z = 1/2."""
    return lax.logistic(4.0 * z - 2.0)


def dsilu(z: jax.Array) -> jax.Array:
    """(SiLU(z) - SiLU(z - 2)) / 2, a smooth clip(z/2, 0, 1); SiLU(z) = z logistic(z)."""
    return 0.5 * (z * lax.logistic(z) - (z - 2.0) * lax.logistic(z - 2.0))


def hard_sigmoid(z: jax.Array) -> jax.Array:
    """clip(z / 2, 0, 1)."""
    return jnp.clip(0.5 * z, 0.0, 1.0)


def identity(z: jax.Array) -> jax.Array:
    """z: linear networks, and linear output neurons."""
    return z


ACTIVATIONS = {
    "shifted_sigmoid": shifted_sigmoid,
    "dsilu": dsilu,
    "hard_sigmoid": hard_sigmoid,
    "tanh": jnp.tanh,
    "identity": identity,
}
