"""Vision transformer (Dosovitskiy et al. 2021), small, without a class token."""

import jax
from flax import linen as nn

from bpfree.models.convnet import as_images
from bpfree.models.transformer import Block, embedded, norm


class Model(nn.Module):
    """Patches through blocks of attention and MLP; the mean over patches; Dense.

    Blocks, norms and positions are those of `bpfree.models.transformer`.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      patch: side of a patch in pixels; height and width are multiples.
      width: of the residual stream.
      depth: blocks.
      heads: of attention; `width` is a multiple.
      image: (height, width, channels) of an example that the data set gives as a row of
        pixels; () for data that comes as images.
    """

    num_classes: int
    patch: int = 2
    width: int = 32
    depth: int = 2
    heads: int = 4
    image: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Images (B, H, W, C), or rows of them, to logits (B, num_classes).

        Raises ValueError: data that are no images, or that patches do not divide; width
        is no multiple of heads.
        """
        x = embedded(patches(as_images(x, self.image), self.patch), self.width)
        for _ in range(self.depth):
            x = Block(self.heads)(x)
        return nn.Dense(self.num_classes)(norm(x).mean(1))


def patches(images: jax.Array, side: int) -> jax.Array:
    """(B, H, W, C) to (B, H W / side^2, side^2 C), row by row; ValueError if uneven."""
    size, height, width, channels = images.shape
    if height % side or width % side:
        raise ValueError(f"patches of side {side} do not divide {height} x {width}")
    rows, columns = height // side, width // side
    cut = images.reshape(size, rows, side, columns, side, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(size, rows * columns, -1)
