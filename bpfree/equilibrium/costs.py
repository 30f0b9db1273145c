"""Costs C of the outputs, one number per example; labels are classes or targets."""

import jax
import jax.numpy as jnp
from jax import lax


def cross_entropy(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(outputs)[label], (B,); outputs (B, C), label int (B,) or (B, C)."""
    top = lax.stop_gradient(outputs.real.max(1, keepdims=True))
    z = outputs - top.astype(outputs.dtype)
    log_sum = jnp.log(jnp.exp(z).sum(1))
    return log_sum - (targets(label, outputs) * z).sum(1)


def squared_error(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """|outputs - target|^2 / 2, (B,); class labels become one-hot targets."""
    rows = outputs.reshape(outputs.shape[0], -1)
    return 0.5 * jnp.square(rows - targets(label, rows)).sum(1)


def targets(label: jax.Array, outputs: jax.Array) -> jax.Array:
    """Targets of the outputs' shape and dtype, one-hot for class labels."""
    if jnp.issubdtype(label.dtype, jnp.integer):
        label = jax.nn.one_hot(label, outputs.shape[-1], dtype=outputs.real.dtype)
    return label.astype(outputs.dtype)


COSTS = {"cross_entropy": cross_entropy, "squared_error": squared_error}
