r"""Attacks and corruptions: how much of a net's accuracy is left.

An attack looks for a change of at most epsilon per input that raises the loss,

    max over |d|_inf <= epsilon, x + d within bounds, of L(x + d, label),

example by example. `loss` is `(x (B, ...), label (B,)) -> (B,)`, of the net itself for a
white-box attack and of another net for a transfer attack; x is float, in `bounds`. All
are pure functions and return an x of the same shape. A net without derivatives (threshold
units) defeats the attacks that take them, and is no safer for it: look at `random_search`
and at transfer too.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Bounds = tuple[float, float]


def fgsm(
    loss: Loss, x: jax.Array, label: jax.Array, epsilon: float, bounds: Bounds = (0, 1)
) -> jax.Array:
    """Fast gradient sign method: x + epsilon sign(dL/dx), clipped to the bounds.

    Args:
      loss: `(x (B, ...), label (B,)) -> losses (B,)`, of the net that is differentiated.
      x, label: the examples, float, and their labels.
      epsilon: largest change of an entry, in units of x.
      bounds: smallest and largest value of an entry.

    Returns:
      The attacked x, of the same shape.

    Source: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial
    examples", ICLR 2015, arXiv:1412.6572.

    Example:
        >>> loss = lambda x, label: (x.sum(1) - label) ** 2
        >>> x, label = jnp.full((2, 3), 0.5), jnp.zeros(2)
        >>> bpfree.robustness.fgsm(loss, x, label, 0.1)[0].tolist()
        [0.6000000238418579, 0.6000000238418579, 0.6000000238418579]
    """
    return jnp.clip(x + epsilon * jnp.sign(_slope(loss, x, label)), *bounds)


def pgd(
    loss: Loss,
    x: jax.Array,
    label: jax.Array,
    epsilon: float,
    *,
    key: jax.Array,
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    bounds: Bounds = (0, 1),
) -> jax.Array:
    """Projected gradient ascent from random starts; of each example the worst end.

    Args:
      loss, x, label, epsilon, bounds: as in `bpfree.robustness.fgsm`.
      key: PRNG key of the starts; consumed.
      steps: signed gradient steps from each start.
      step_size: of a step; None is 2.5 epsilon / steps.
      restarts: independent starts, uniform in the box of half-width epsilon.

    Returns:
      The attacked x, of the same shape.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks",
    ICLR 2018, arXiv:1706.06083.

    Example:
        >>> loss = lambda x, label: (x.sum(1) - label) ** 2
        >>> x, label = jnp.full((2, 3), 0.5), jnp.zeros(2)
        >>> worst = bpfree.robustness.pgd(loss, x, label, 0.1, key=jax.random.key(0))
        >>> bool(jnp.allclose(worst, 0.6))
        True
    """
    size = 2.5 * epsilon / steps if step_size is None else step_size

    def climb(key):
        start = jax.random.uniform(key, x.shape, x.dtype, -epsilon, epsilon)

        def step(_, y):
            y = y + size * jnp.sign(_slope(loss, y, label))
            return _projected(y, x, epsilon, bounds)

        return lax.fori_loop(0, steps, step, _projected(x + start, x, epsilon, bounds))

    found = lax.map(climb, jax.random.split(key, restarts))
    losses = lax.map(lambda y: loss(y, label), found)
    return found[losses.argmax(0), jnp.arange(len(x))]


def mi_fgsm(
    loss: Loss,
    x: jax.Array,
    label: jax.Array,
    epsilon: float,
    *,
    steps: int = 10,
    decay: float = 1.0,
    bounds: Bounds = (0, 1),
) -> jax.Array:
    """Iterated FGSM along a running sum of gradients, each of L1 norm 1.

    Args:
      loss, x, label, epsilon, bounds: as in `bpfree.robustness.fgsm`.
      steps: of size epsilon / steps.
      decay: factor of the running sum in each step.

    Returns:
      The attacked x, of the same shape.

    Source: Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018,
    arXiv:1710.06081.

    Example:
        >>> loss = lambda x, label: (x.sum(1) - label) ** 2
        >>> x, label = jnp.full((2, 3), 0.5), jnp.zeros(2)
        >>> bool(jnp.allclose(bpfree.robustness.mi_fgsm(loss, x, label, 0.1), 0.6))
        True
    """

    def step(_, carry):
        y, momentum = carry
        slope = _slope(loss, y, label)
        norm = jnp.abs(slope).sum(tuple(range(1, x.ndim)), keepdims=True)
        momentum = decay * momentum + slope / jnp.maximum(norm, 1e-12)
        y = y + epsilon / steps * jnp.sign(momentum)
        return _projected(y, x, epsilon, bounds), momentum

    return lax.fori_loop(0, steps, step, (x, jnp.zeros_like(x)))[0]


def random_search(
    loss: Loss,
    x: jax.Array,
    label: jax.Array,
    epsilon: float,
    *,
    key: jax.Array,
    steps: int = 500,
    share: float = 0.3,
    bounds: Bounds = (0, 1),
) -> jax.Array:
    """Gradient-free: corners of the box, with random signs drawn anew where that helps.

    Each step redraws the signs of a random share of an example's inputs, `share` at the
    beginning and falling to one input at the end, and keeps them if its loss rises.
    It needs `steps` evaluations of the loss and no derivative.

    Args:
      loss, x, label, epsilon, bounds: as in `bpfree.robustness.fgsm`.
      key: PRNG key of the signs; consumed.
      steps: evaluations of the loss.
      share: of an example's inputs, redrawn in the first step, in 0 .. 1.

    Returns:
      The attacked x, of the same shape.

    Example:
        >>> loss = lambda x, label: (x > 0.55).sum(1) - label  # no derivative
        >>> x, label = jnp.full((2, 3), 0.5), jnp.zeros(2)
        >>> found = bpfree.robustness.random_search(
        ...     loss, x, label, 0.1, key=jax.random.key(0), steps=50
        ... )
        >>> loss(found, label).tolist()
        [3.0, 3.0]
    """
    size = x[0].size

    def step(i, carry):
        signs, worst = carry
        where_key, sign_key = jax.random.split(jax.random.fold_in(key, i))
        share_now = jnp.maximum(share * (1 - i / steps), 1 / size)
        where = jax.random.bernoulli(where_key, share_now, x.shape)
        tried = jnp.where(where, jax.random.rademacher(sign_key, x.shape, x.dtype), signs)
        losses = loss(jnp.clip(x + epsilon * tried, *bounds), label)
        better = losses > worst
        keep = better.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(keep, tried, signs), jnp.where(better, losses, worst)

    signs = jax.random.rademacher(jax.random.fold_in(key, steps), x.shape, x.dtype)
    first = loss(jnp.clip(x + epsilon * signs, *bounds), label)
    signs, _ = lax.fori_loop(0, steps, step, (signs, first))
    return jnp.clip(x + epsilon * signs, *bounds)


def _slope(loss: Loss, x: jax.Array, label: jax.Array) -> jax.Array:
    return jax.grad(lambda x: loss(x, label).sum())(x)


def _projected(y: jax.Array, x: jax.Array, epsilon: float, bounds: Bounds) -> jax.Array:
    return jnp.clip(jnp.clip(y, x - epsilon, x + epsilon), *bounds)


# -------------------------------------------------------------------------- corruptions


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


def accuracy(apply: Callable[[Any], jax.Array], x: jax.Array, label: jax.Array):
    """Share of the examples whose largest logit is that of the label, float32 ().

    Args:
      apply: `x -> logits (B, classes)`.
      x, label: the examples and their labels (B,).

    Example:
        >>> logits = jnp.array([[0.0, 1.0], [2.0, 1.0]])
        >>> float(bpfree.robustness.accuracy(lambda x: x, logits, jnp.array([1, 1])))
        0.5
    """
    return (apply(x).argmax(-1) == label).mean(dtype=jnp.float32)
