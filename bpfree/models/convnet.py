"""Convolutional network."""

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn
from flax.linen.linear import default_kernel_init

from bpfree.choices import check_choice
from bpfree.models.mlp import Activation, activation

Norm = Literal["none", "batch"]


def as_images(x: jax.Array, image: Sequence[int]) -> jax.Array:
    """Images (B, H, W, C), from rows of pixels if `image` says their shape.

    Raises ValueError for examples that are neither.
    """
    if image:
        x = x.reshape(x.shape[0], *image)
    if x.ndim != 4:
        raise ValueError(
            f"examples of shape {x.shape[1:]} are no images: set image= to their "
            "(height, width, channels)"
        )
    return x


def convolved(
    x: jax.Array,
    channels: int,
    strides: int,
    norm: Norm,
    train: bool,
    size: tuple[int, int] = (3, 3),
    kernel_init: nn.initializers.Initializer = default_kernel_init,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> jax.Array:
    """A convolution and its norm, as modules of the caller; ValueError."""
    check_choice("norm", norm, Norm)
    bare = norm == "none"
    conv = nn.Conv(channels, size, strides, use_bias=bare, kernel_init=kernel_init)
    if bare:
        return conv(x)
    scaled = nn.BatchNorm(not train, momentum=0.9, scale_init=scale_init)
    return scaled(conv(x))


class Model(nn.Module):
    """3x3 convolutions of stride 2, each with a norm and an activation; then Dense.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      channels: of the convolutions.
      norm: "none", or "batch" for batch normalisation after every convolution, which
        then has no bias: the norm would take it out again.
      activation: one of `bpfree.models.mlp.ACTIVATIONS`.
      image: (height, width, channels) of an example that the data set gives as a row of
        pixels; () for data that comes as images.
    """

    num_classes: int
    channels: Sequence[int] = (16, 32)
    norm: Norm = "none"
    activation: Activation = "relu"
    image: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (B, H, W, C), or rows of them, to logits (B, num_classes).

        With norm="batch", train=True normalises with the batch's statistics and moves the
        running ones, the collection "batch_stats"; train=False normalises with these.

        Raises ValueError: unknown norm or activation; data that are no images.
        """
        phi = activation(self.activation)
        x = as_images(x, self.image)
        for channels in self.channels:
            x = phi(convolved(x, channels, 2, self.norm, train))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
