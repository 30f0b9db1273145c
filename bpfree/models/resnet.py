"""Residual networks of 18, 20 and 50 layers (He et al. 2016)."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
from flax import linen as nn

from bpfree.choices import check_choice
from bpfree.models.convnet import Norm, as_images, convolved
from bpfree.models.mlp import Activation, activation

Layers = Literal[18, 20, 50]
Stem = Literal["cifar", "imagenet"]
LAYERS = {18: (2, 2, 2, 2), 20: (3, 3, 3), 50: (3, 4, 6, 3)}


class Model(nn.Module):
    """A stem, stages of residual blocks, the mean over positions, Dense.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      layers: 18 (blocks of two 3x3 convolutions, four stages), 20 (three stages of three
        such blocks, for small images; 16 channels in its authors' hands) or 50
        (bottlenecks, four stages).
      width: channels of the first stage; each later one has twice as many.
      stem: "cifar" (3x3) or "imagenet" (7x7 of stride 2, then 3x3 maxima of stride 2).
      norm: "batch"; or "none": biases, and branches that start as zero (their last
        convolution does), so that depth does not blow activities up.
      activation: one of `bpfree.models.mlp.ACTIVATIONS`.
      image: (height, width, channels) of an example that the data set gives as a row of
        pixels; () for data that comes as images.
    """

    num_classes: int
    layers: Layers = 18
    width: int = 64
    stem: Stem = "cifar"
    norm: Norm = "batch"
    activation: Activation = "relu"
    image: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (B, H, W, C), or rows of them, to logits (B, num_classes).

        Raises ValueError: unknown layers, stem, norm or activation.
        """
        check_choice("layers", self.layers, Layers)
        check_choice("stem", self.stem, Stem)
        check_choice("norm", self.norm, Norm)
        phi = activation(self.activation)
        x = as_images(x, self.image)
        large = self.stem == "imagenet"
        size, strides = ((7, 7), 2) if large else ((3, 3), 1)
        x = phi(_Conv(self.width, size, strides, self.norm)(x, train))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(LAYERS[self.layers]):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                width = self.width * 2**stage
                x = _Block(width, strides, self.layers == 50, self.norm, phi)(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class _Block(nn.Module):
    """x + branch(x), the branch two 3x3 convolutions or a bottleneck."""

    width: int
    strides: int
    bottleneck: bool
    norm: Norm
    phi: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x, train):
        phi, norm = self.phi, self.norm
        out = 4 * self.width if self.bottleneck else self.width
        y, size = x, (3, 3)
        if self.bottleneck:
            y, size = phi(_Conv(self.width, (1, 1), 1, norm)(x, train)), (1, 1)
        y = phi(_Conv(self.width, (3, 3), self.strides, norm)(y, train))
        y = _Conv(out, size, 1, norm, last=True)(y, train)
        if x.shape != y.shape:
            x = _Conv(out, (1, 1), self.strides, norm)(x, train)
        return phi(x + y)


class _Conv(nn.Module):
    """A convolution and its norm; the last of a branch starts it as zero."""

    channels: int
    size: tuple[int, int]
    strides: int
    norm: Norm
    last: bool = False

    @nn.compact
    def __call__(self, x, train):
        zeros, he = nn.initializers.zeros, nn.initializers.he_normal()
        kernel = zeros if self.last and self.norm == "none" else he
        scale = zeros if self.last else nn.initializers.ones
        return convolved(
            x,
            self.channels,
            self.strides,
            self.norm,
            train,
            size=self.size,
            kernel_init=kernel,
            scale_init=scale,
        )
