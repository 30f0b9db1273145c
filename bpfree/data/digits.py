"""scikit-learn's bundled handwritten digits: 1797 images of 8 x 8 pixels, 10 classes.

They are the test part of the UCI set "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak, 1998). Nothing is downloaded.

The split is a rule, not a random draw: of the images of each class, in file order, number
k goes to validation if k % 5 == 3, to test if k % 5 == 4, and to training otherwise
(1085, 357 and 355 images).
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.data import Augment, Batch, Dataset, arrays
from bpfree.data.preprocess import EPSILON, Kind, preprocessed

SIDE = 8
_SHA256 = "fe61bc84cd6a594d5ed1b937b7d8f8f791d4091d2a9df91fe5d6066156a4db6e"


def load(
    *,
    shift: float = 0.0,
    pixel_noise: float = 0.0,
    preprocess: Kind = "none",
    epsilon: float = EPSILON,
) -> Dataset:
    """The digits, pixels scaled to 0 .. 1, features (B, 64).

    Args:
      shift: each training image moves by up to so many pixels along either axis, uniform;
        fractions of a pixel are interpolated.
      pixel_noise: standard deviation of the normal noise added to training images.
        Both are drawn afresh at every step.
      preprocess: what is done to the inputs, see `bpfree.data.preprocess`.
      epsilon: added to variances there.

    Raises ValueError: the installed scikit-learn holds other data than we know.
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    found = load_digits()
    images, labels = found.data.astype(np.uint8), found.target.astype(np.int32)
    checksum = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if checksum != _SHA256:
        raise ValueError(
            f"the digits have SHA-256 {checksum}, expected {_SHA256}: this scikit-learn "
            "bundles other data, and results would not compare. Install another version."
        )
    x = images.astype(np.float32) / np.float32(16)
    source = {
        "name": "sklearn.datasets.load_digits",
        "sha256": checksum,
        "split": "k-th image of its class: validation k % 5 == 3, test k % 5 == 4",
    }
    augment = _augment(shift, pixel_noise) if shift or pixel_noise else None
    data = arrays.split({"x": x, "label": labels})
    data = data._replace(source=source, augment=augment).counted()
    return preprocessed(data, preprocess, epsilon)


def _augment(shift: float, pixel_noise: float) -> Augment:
    def augment(key: jax.Array, batch: Batch) -> Batch:
        move_key, noise_key = jax.random.split(key)
        x = batch["x"]
        moves = jax.random.uniform(move_key, (x.shape[0], 2), x.dtype, -shift, shift)
        noise = pixel_noise * jax.random.normal(noise_key, x.shape, x.dtype)
        return {**batch, "x": jax.vmap(_move)(x, moves) + noise}

    return augment


def _move(pixels: jax.Array, by: jax.Array) -> jax.Array:
    """One image (64,) moved by (2,) pixels down and right; zero comes in."""
    image = pixels.reshape(SIDE, SIDE)
    return (_resample(by[0]) @ image @ _resample(by[1]).T).reshape(-1)


def _resample(by: jax.Array) -> jax.Array:
    """Linear interpolation that moves a row of pixels by `by`, (SIDE, SIDE)."""
    place = jnp.arange(SIDE, dtype=by.dtype)
    return jax.nn.relu(1 - jnp.abs(place[:, None] - by - place[None, :]))
