"""Random flips and crops of image batches, drawn afresh at every step."""

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.data import Augment, Batch


def flip_and_crop(flip: bool, crop: int) -> Augment | None:
    """Mirror each image with probability 1/2, and move it by up to `crop` pixels.

    Args:
      flip: whether to mirror, left to right.
      crop: images move by a whole number of pixels along either axis, uniform in
        -crop .. crop; black comes in. The usual "pad by 4 and crop" is crop=4.

    Returns: `(key, batch) -> batch` for x (B, H, W, C); None if there is nothing to do.

    Raises ValueError: crop < 0.
    """
    if crop < 0:
        raise ValueError(f"crop={crop} must be at least 0 pixels")
    if not (flip or crop):
        return None

    def augment(key: jax.Array, batch: Batch) -> Batch:
        flip_key, move_key = jax.random.split(key)
        x = batch["x"]
        if flip:
            mirrored = jax.random.bernoulli(flip_key, shape=(x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        if crop:
            corners = jax.random.randint(move_key, (x.shape[0], 2), 0, 2 * crop + 1)
            rim = ((0, 0), (crop, crop), (crop, crop), (0, 0))
            x = jax.vmap(lambda image, corner: _cut(image, corner, x.shape[1:]))(
                jnp.pad(x, rim), corners
            )
        return {**batch, "x": x}

    return augment


def _cut(image: jax.Array, corner: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    zero = jnp.zeros((), corner.dtype)
    return lax.dynamic_slice(image, (corner[0], corner[1], zero), shape)
