"""Multilayer perceptron."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "sigmoid": nn.sigmoid,
    "sign": jnp.sign,  # derivative zero: trains by perturbation only
}


class Model(nn.Module):
    """Dense layers with an activation between them.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      hidden: widths of the hidden layers.
      activation: one of `ACTIVATIONS`.
    """

    num_classes: int
    hidden: Sequence[int] = (128, 128)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Inputs (B, ...) to logits (B, num_classes); ValueError: unknown activation."""
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; choose one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
