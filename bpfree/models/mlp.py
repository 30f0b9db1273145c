"""Multilayer perceptron."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree.choices import check_choice

Activation = Literal["relu", "leaky_relu", "tanh", "gelu", "silu", "sigmoid", "sign"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "leaky_relu": partial(nn.leaky_relu, negative_slope=0.2),
    "tanh": nn.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "sigmoid": nn.sigmoid,
    "sign": jnp.sign,  # derivative zero: trains by perturbation only
}


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
    """One of `ACTIVATIONS`; ValueError with the choices."""
    check_choice("activation", name, Activation)
    return ACTIVATIONS[name]


class Model(nn.Module):
    """Dense layers with an activation between them.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      hidden: widths of the hidden layers.
      activation: one of `ACTIVATIONS`.
      adapters: rank of a branch parallel to every hidden layer, W x + U (V x) with U zero
        at first, for fine-tuning with W fixed; 0 for none.
    """

    num_classes: int
    hidden: Sequence[int] = (128, 128)
    activation: Activation = "relu"
    adapters: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Inputs (B, ...) to logits (B, num_classes); ValueError: unknown activation."""
        phi = activation(self.activation)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            y = nn.Dense(width, name=f"Dense_{i}")(x)
            x = phi(y + self.adapter(i, x, width) if self.adapters else y)
        return nn.Dense(self.num_classes, name=f"Dense_{len(self.hidden)}")(x)

    def adapter(self, layer: int, x: jax.Array, width: int) -> jax.Array:
        """U (V x), of rank `adapters`."""
        inner = nn.Dense(self.adapters, use_bias=False, name=f"down_{layer}")(x)
        up = nn.Dense(
            width, use_bias=False, kernel_init=nn.initializers.zeros, name=f"up_{layer}"
        )
        return up(inner)
