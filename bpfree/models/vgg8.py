"""VGG-8: six convolutions and two dense layers, for images of 32 x 32."""

import jax
from flax import linen as nn

from bpfree.models.mlp import activation


class Model(nn.Module):
    """3x3 convolutions in pairs of 16, 32 and 64, each pair pooled by 2; 256 units.

    Biases, no norm. 337,050 parameters for ten classes of 32 x 32 x 3 images. The net
    that the likelihood-ratio papers train, as far as their group's code shows it.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      activation: one of `bpfree.models.mlp.ACTIVATIONS`.
      image: (height, width, channels) of an example that the data set gives as a row of
        pixels; () for data that comes as images.
    """

    num_classes: int
    activation: str = "relu"
    image: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (B, H, W, C), H and W multiples of 8, to logits (B, num_classes)."""
        phi = activation(self.activation)
        if self.image:
            x = x.reshape(x.shape[0], *self.image)
        for channels in (16, 32, 64):
            x = phi(nn.Conv(channels, (3, 3))(x))
            x = phi(nn.Conv(channels, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = phi(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)
