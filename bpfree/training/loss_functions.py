"""The losses and metrics that have a name: functions of (outputs, label).

The result begins with the axes of the label: one number for each example, or for each of
an example's labels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Function = Callable[[Any, jax.Array], jax.Array]


def cross_entropy(outputs: Any, label: jax.Array) -> jax.Array:
    """-log softmax(outputs)[label], of logits (..., classes) and whole numbers (...)."""
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"cross_entropy takes labels that are whole numbers, not {label.dtype}; "
            "config.loss='squared_error' takes real ones. (Of one-hot rows take "
            "label.argmax(-1), of 0.0 and 1.0 label.astype(int).)"
        )
    rows = logits(outputs, label)
    return optax.softmax_cross_entropy_with_integer_labels(rows, label)


def squared_error(outputs: Any, label: jax.Array) -> jax.Array:
    """(outputs - label)^2, entry by entry."""
    return jnp.square(aligned(outputs, label) - label)


def absolute_error(outputs: Any, label: jax.Array) -> jax.Array:
    """|outputs - label|, entry by entry."""
    return jnp.abs(aligned(outputs, label) - label)


def accuracy(outputs: Any, label: jax.Array) -> jax.Array:
    """Whether the largest of the logits (..., classes) is that of the label (...)."""
    return (one_array(outputs).argmax(-1) == label).astype(jnp.float32)


def one_array(outputs: Any) -> Any:
    """The outputs; raises ValueError where a model gives several arrays."""
    if hasattr(outputs, "shape"):
        return outputs
    raise ValueError(
        f"the model's outputs are a {type(outputs).__name__}, not one array: return the "
        "array, or name a loss of your own that takes them (config.loss)"
    )


def logits(outputs: Any, label: Any) -> Any:
    """The outputs; raises ValueError unless they are a row (classes,) for each label."""
    if one_array(outputs).shape[:-1] != label.shape:
        raise ValueError(
            f"the model's outputs have shape {outputs.shape}, and the labels "
            f"{label.shape}: classes need one label for each row of logits"
        )
    return outputs


def aligned(outputs: Any, label: Any) -> Any:
    """The outputs in the shape of the labels: (B, 1) is (B,) where labels are (B,).

    Raises ValueError for any other difference.
    """
    if one_array(outputs).shape == (*label.shape, 1):
        return outputs[..., 0]
    if outputs.shape != label.shape:
        raise ValueError(
            f"the model's outputs have shape {outputs.shape}, and the labels "
            f"{label.shape}: they must agree"
        )
    return outputs


LOSSES: dict[str, Function] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "absolute_error": absolute_error,
}
METRICS: dict[str, Function] = {"accuracy": accuracy, **LOSSES}
