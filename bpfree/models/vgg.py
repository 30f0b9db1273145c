"""VGG-like convolutional network."""

from collections.abc import Sequence
from typing import Literal

import jax
from flax import linen as nn

from bpfree.choices import check_choice
from bpfree.models.convnet import Norm, as_images, convolved
from bpfree.models.mlp import Activation, activation

Pool = Literal["max", "stride"]


class Model(nn.Module):
    """Stages of 3x3 convolutions, each at half the resolution of the one before; Dense.

    `stages=((16, 16), (32, 32), (64, 64)), pool="max", hidden=(256,)` is the VGG-8 that
    the likelihood-ratio papers train, as far as their group's code shows it.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      stages: channels of the convolutions of each stage.
      pool: "max" ends a stage with 2x2 maxima, as VGG does; "stride" begins it with a
        convolution of stride 2.
      hidden: widths of dense layers between the last stage and the readout.
      norm: "none", or "batch" for batch normalisation after every convolution.
      activation: one of `bpfree.models.mlp.ACTIVATIONS`.
      image: (height, width, channels) of an example that the data set gives as a row of
        pixels; () for data that comes as images.
    """

    num_classes: int
    stages: Sequence[Sequence[int]] = ((16,), (32, 32), (64, 64))
    pool: Pool = "stride"
    hidden: Sequence[int] = ()
    norm: Norm = "none"
    activation: Activation = "relu"
    image: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (B, H, W, C), or rows of them, to logits (B, num_classes).

        Raises ValueError: unknown norm, pool or activation.
        """
        check_choice("pool", self.pool, Pool)
        phi = activation(self.activation)
        x = as_images(x, self.image)
        for stage in self.stages:
            for i, channels in enumerate(stage):
                strides = 2 if self.pool == "stride" and i == 0 else 1
                x = phi(convolved(x, channels, strides, self.norm, train))
            if self.pool == "max":
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = phi(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
