"""Costs C of the outputs, one number per example; labels are classes or targets."""

import jax
import jax.numpy as jnp
from jax import lax


def cross_entropy(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(outputs)[label], shape (B,).

    Args:
      outputs: logits (B, classes), real or complex.
      label: classes, int (B,), or targets (B, classes).

    Example:
        >>> cost = bpfree.equilibrium.cross_entropy(jnp.zeros((1, 2)), jnp.array([1]))
        >>> round(float(cost[0]), 4)
        0.6931
    """
    top = lax.stop_gradient(outputs.real.max(1, keepdims=True))
    z = outputs - top.astype(outputs.dtype)
    log_sum = jnp.log(jnp.exp(z).sum(1))
    return log_sum - (targets(label, outputs) * z).sum(1)


def squared_error(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """|outputs - target|^2 / 2, shape (B,).

    Args:
      outputs: (B, ...), real or complex.
      label: classes, int (B,), which become one-hot targets, or targets (B, outputs).

    Example:
        >>> cost = bpfree.equilibrium.squared_error(jnp.zeros((1, 2)), jnp.array([1]))
        >>> cost.tolist()
        [0.5]
    """
    rows = outputs.reshape(outputs.shape[0], -1)
    return 0.5 * jnp.square(rows - targets(label, rows)).sum(1)


def targets(label: jax.Array, outputs: jax.Array) -> jax.Array:
    """Targets of the outputs' shape and dtype, one-hot for class labels."""
    if jnp.issubdtype(label.dtype, jnp.integer):
        label = jax.nn.one_hot(label, outputs.shape[-1], dtype=outputs.real.dtype)
    return label.astype(outputs.dtype)


COSTS = {"cross_entropy": cross_entropy, "squared_error": squared_error}
