"""Activations sigma of the update h <- sigma(dPhi/dh).

The distance from the real axis to the nearest pole limits the radius of complex nudging:
pi/4 for `shifted_sigmoid`, pi for `dsilu`. `hard_sigmoid` and "relu" (`jax.nn.relu`) are
for real nudging only, and "relu" is for little feedback: nothing bounds its states.
"""

import jax
import jax.numpy as jnp
from jax import lax


def shifted_sigmoid(z: jax.Array) -> jax.Array:
    """1 / (1 + exp(-4 z + 2)), with slope 1 at z = 1/2.

    Args:
      z: drive of a neuron, any shape, real or complex.

    Example:
        >>> float(bpfree.equilibrium.shifted_sigmoid(jnp.float32(0.5)))
        0.5
    """
    return lax.logistic(4.0 * z - 2.0)


def dsilu(z: jax.Array) -> jax.Array:
    """(SiLU(z) - SiLU(z - 2)) / 2, a smooth clip(z/2, 0, 1); SiLU(z) = z logistic(z).

    Args:
      z: drive of a neuron, any shape, real or complex.

    Example:
        >>> round(float(bpfree.equilibrium.dsilu(jnp.float32(1.0))), 3)
        0.5
    """
    return 0.5 * (z * lax.logistic(z) - (z - 2.0) * lax.logistic(z - 2.0))


def hard_sigmoid(z: jax.Array) -> jax.Array:
    """clip(z / 2, 0, 1). Not holomorphic: for real nudging only.

    Args:
      z: drive of a neuron, any shape, real.

    Example:
        >>> float(bpfree.equilibrium.hard_sigmoid(jnp.float32(0.5)))
        0.25
    """
    return jnp.clip(0.5 * z, 0.0, 1.0)


def identity(z: jax.Array) -> jax.Array:
    """z itself, for linear networks and linear output neurons.

    Args:
      z: drive of a neuron, any shape, real or complex.

    Example:
        >>> float(bpfree.equilibrium.identity(jnp.float32(0.5)))
        0.5
    """
    return z


ACTIVATIONS = {
    "shifted_sigmoid": shifted_sigmoid,
    "dsilu": dsilu,
    "hard_sigmoid": hard_sigmoid,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "identity": identity,
}
