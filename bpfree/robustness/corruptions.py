"""Corruptions: changes of an input that nobody chose to do harm, in five severities."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.robustness.attacks import Bounds


def gaussian(key: jax.Array, x: jax.Array, severity: float) -> jax.Array:
    """Normal noise of standard deviation `severity` is added to x. Nothing is clipped.

    Args:
      key: PRNG key; consumed.
      x: examples (B, ...), float.
      severity: as above, in units of x or as a share.

    Example:
        >>> bpfree.robustness.gaussian(jax.random.key(0), jnp.ones((2, 3)), 0.1).shape
        (2, 3)
    """
    return x + severity * jax.random.normal(key, x.shape, x.dtype)


def uniform(key: jax.Array, x: jax.Array, severity: float) -> jax.Array:
    """Uniform noise in +- `severity` is added to x. Nothing is clipped.

    Args:
      key: PRNG key; consumed.
      x: examples (B, ...), float.
      severity: as above, in units of x or as a share.

    Example:
        >>> bpfree.robustness.uniform(jax.random.key(0), jnp.ones((2, 3)), 0.1).shape
        (2, 3)
    """
    return x + jax.random.uniform(key, x.shape, x.dtype, -severity, severity)


def salt_and_pepper(key: jax.Array, x: jax.Array, severity: float) -> jax.Array:
    """A share `severity` of the entries is set to 0 or 1, at random. Nothing is clipped.

    Args:
      key: PRNG key; consumed.
      x: examples (B, ...), float.
      severity: as above, in units of x or as a share.

    Example:
        >>> key, x = jax.random.key(0), jnp.ones((2, 3))
        >>> bpfree.robustness.salt_and_pepper(key, x, 0.1).shape
        (2, 3)
    """
    where_key, value_key = jax.random.split(key)
    where = jax.random.bernoulli(where_key, severity, x.shape)
    value = jax.random.bernoulli(value_key, 0.5, x.shape).astype(x.dtype)
    return jnp.where(where, value, x)


def contrast(key: jax.Array, x: jax.Array, severity: float) -> jax.Array:
    """Contrast is lowered by the share `severity`, around each example's mean.

    Nothing is clipped.

    Args:
      key: not used.
      x: examples (B, ...), float.
      severity: as above, in units of x or as a share.

    Example:
        >>> x = jnp.array([[0.0, 1.0]])
        >>> bpfree.robustness.contrast(jax.random.key(0), x, 0.5).tolist()
        [[0.25, 0.75]]
    """
    del key
    mean = x.mean(tuple(range(1, x.ndim)), keepdims=True)
    return mean + (1 - severity) * (x - mean)


def brightness(key: jax.Array, x: jax.Array, severity: float) -> jax.Array:
    """`severity` is added to all entries. Nothing is clipped.

    Args:
      key: not used.
      x: examples (B, ...), float.
      severity: as above, in units of x or as a share.

    Example:
        >>> x = jnp.array([[0.0, 1.0]])
        >>> bpfree.robustness.brightness(jax.random.key(0), x, 0.5).tolist()
        [[0.5, 1.5]]
    """
    del key
    return x + severity


def blur(key: jax.Array, x: jax.Array, severity: float) -> jax.Array:
    """Images under a Gaussian of standard deviation `severity`, seven pixels wide.

    Args:
      key: not used.
      x: images (B, H, W, C), float.
      severity: standard deviation in pixels.

    Raises:
      ValueError: examples that are no images.

    Example:
        >>> x = jnp.ones((1, 4, 4, 1))
        >>> bool(jnp.allclose(bpfree.robustness.blur(jax.random.key(0), x, 1.0), x))
        True
    """
    del key
    if x.ndim != 4:
        raise ValueError(f"blur needs images (B, H, W, C), got shape {x.shape}")
    at = jnp.arange(-3, 4, dtype=x.dtype)
    weights = jnp.exp(-((at / severity) ** 2) / 2)
    weights /= weights.sum()
    for axis in (1, 2):
        pad = [(3, 3) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(x, pad, mode="edge")
        slices = [
            lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(7)
        ]
        x = sum(w * s for w, s in zip(weights, slices, strict=True))
    return x


# {name: (corruption, what its five severities mean there)}, for inputs in 0 .. 1.
CORRUPTIONS: dict[str, tuple[Callable[..., jax.Array], tuple[float, ...]]] = {
    "gaussian": (gaussian, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "uniform": (uniform, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "salt_and_pepper": (salt_and_pepper, (0.05, 0.1, 0.2, 0.3, 0.4)),
    "contrast": (contrast, (0.2, 0.4, 0.6, 0.75, 0.9)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "blur": (blur, (0.5, 0.75, 1.0, 1.5, 2.0)),
}


Corruption = Literal[
    "gaussian", "uniform", "salt_and_pepper", "contrast", "brightness", "blur"
]


def corrupted(
    name: Corruption, key: jax.Array, x: jax.Array, severity: int, bounds: Bounds = (0, 1)
) -> jax.Array:
    """x under one of `CORRUPTIONS`, clipped to the bounds.

    Args:
      name: "gaussian", "uniform", "salt_and_pepper", "contrast", "brightness" or "blur".
      key: PRNG key; consumed.
      x: examples (B, ...), float.
      severity: 1 to 5; `CORRUPTIONS` says what they mean.
      bounds: smallest and largest value of an entry.

    Returns:
      The corrupted x, of the same shape.

    Raises:
      ValueError: an unknown name or severity.

    Example:
        >>> x = jnp.full((1, 2), 0.5)
        >>> bpfree.robustness.corrupted("contrast", jax.random.key(0), x, 5).tolist()
        [[0.5, 0.5]]
    """
    if name not in CORRUPTIONS or severity not in range(1, 6):
        raise ValueError(
            f"corruption {name!r} of severity {severity}: choose one of "
            f"{tuple(CORRUPTIONS)} and 1 to 5"
        )
    corrupt, levels = CORRUPTIONS[name]
    return jnp.clip(corrupt(key, x, levels[severity - 1]), *bounds)
