"""ResNet-5: four convolutions, one skip, one dense layer, for images of 32 x 32."""

import jax
from flax import linen as nn

from bpfree.models.convnet import as_images
from bpfree.models.mlp import Activation, activation


class Model(nn.Module):
    """Convolutions 8-16-32-32 of 3x3, a skip around the last one, and a dense layer.

    Pools by 2 after the second convolution and by 4 before the dense layer; biases, no
    norm. 20,410 parameters for ten classes of 32 x 32 x 3 images. The net that the
    likelihood-ratio papers train on CIFAR-10, as far as their group's code shows it.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      activation: one of `bpfree.models.mlp.ACTIVATIONS`.
      image: (height, width, channels) of an example that the data set gives as a row of
        pixels; () for data that comes as images.
    """

    num_classes: int
    activation: Activation = "relu"
    image: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (B, H, W, C), H and W multiples of 8, to logits (B, num_classes)."""
        phi = activation(self.activation)
        x = as_images(x, self.image)
        x = phi(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(phi(nn.Conv(16, (3, 3))(x)), (2, 2), (2, 2))
        x = phi(nn.Conv(32, (3, 3))(x))
        x = x + phi(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(x, (4, 4), (4, 4))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
