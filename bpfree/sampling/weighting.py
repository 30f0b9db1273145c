"""Values of all samples, each times its weight, and their sum over the samples.

Values are the noise or the change of a node, (K, *node shape) for K samples; weights are
the losses of the samples less a baseline.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.program import products


def broadcast(weights: jax.Array, ndim: int, batch_axis: int | None) -> jax.Array:
    """The weights with `ndim` axes, to multiply values (K, *node shape).

    Args:
      weights: (K, B), one per sample and example; (K,) for one loss per batch.
      ndim: of the values.
      batch_axis: of the node; None for a value shared by the batch, which is weighted
        with the sum over examples.
    """
    shape = [1] * ndim
    shape[0] = weights.shape[0]
    if weights.ndim == 2 and batch_axis is None:
        weights = weights.sum(1)
    elif weights.ndim == 2 and batch_axis is not None:
        shape[1 + batch_axis] = weights.shape[1]
    return weights.reshape(shape)


def per_sample(weights: jax.Array, values: jax.Array, batch_axis: int | None):
    """weights[k, b] * values[k, ..., b, ...]: every sample's values times its weight."""
    return broadcast(weights, values.ndim, batch_axis) * values


@partial(jax.jit, static_argnums=2)  # one function in the program for nodes alike
def credit(weights: jax.Array, values: jax.Array, batch_axis: int | None):
    """`per_sample(...).sum(0)`."""
    return weighted_sum(broadcast(weights, values.ndim, batch_axis), values)


@jax.named_scope("bpfree.credit")
def weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """`(weights * values).sum(0)` as one product, batched over the axes of the weights.

    A dot, because XLA on CPU runs the multiply-and-sum 2-3 times slower (BUILD_NOTES).

    Args:
      weights: (K, ...), with as many axes as the values, and size 1 where it broadcasts.
      values: (K, *node shape).
    """
    own = [axis for axis in range(1, values.ndim) if weights.shape[axis] != 1]
    weights = weights.reshape(weights.shape[0], *(weights.shape[axis] for axis in own))
    batch = (list(range(1, weights.ndim)), own)
    numbers = (([0], [0]), batch)
    exact = lax.Precision.HIGHEST
    total = products.dot_general(weights, values, numbers, precision=exact)
    return jnp.moveaxis(total, range(len(own)), [axis - 1 for axis in own])
