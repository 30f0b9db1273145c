r"""Attacks: the worst of all small changes of an input, and the accuracy it leaves.

An attack looks for a change of at most epsilon per input that raises the loss,

    max over |d|_inf <= epsilon, x + d within bounds, of L(x + d, label),

example by example. `loss` is `(x (B, ...), label (B,)) -> (B,)`, of the net itself for a
white-box attack and of another net for a transfer attack; x is float, in `bounds`. All
are pure functions and return an x of the same shape. A net without derivatives (threshold
units) defeats the attacks that take them, and is no safer for it: look at `random_search`
and at transfer too.
"""

from collections.abc import Callable
from typing import Any

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
