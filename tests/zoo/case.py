"""What a member of the zoo is, and how its numbers are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Case(NamedTuple):
    """A loss function as users of a framework write it, and something to call it with.

    Attributes:
      loss_fn: `(params, batch)`, with a key `(params, batch, key)`, to losses `(B,)` or
        `()`, or `(losses, aux)`. Nothing in it comes from bpfree.
      params: float64.
      batch: tree of arrays with the batch axis in front, unless its file says otherwise.
      key: None for a loss without randomness.
    """

    loss_fn: Callable[..., Any]
    params: Any
    batch: Any
    key: jax.Array | None = None


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def weight(seed: int, fan_in: int, *shape: int) -> jax.Array:
    """A kernel that keeps the scale of its input."""
    return normal(seed, *shape) / fan_in**0.5


def labels(seed: int, classes: int, *shape: int) -> jax.Array:
    drawn = np.random.default_rng(seed).integers(classes, size=shape)
    return jnp.asarray(drawn, jnp.int32)


def double(tree: Any) -> Any:
    """Real leaves in double precision; the others as they are."""

    def cast(x):
        real = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, jnp.float64 if real else x.dtype)

    return jax.tree.map(cast, tree)


def filled(shapes: Any, seed: int = 7) -> Any:
    """Parameters of given shapes: kernels that keep the scale of their input, and others.

    Biases, scales and heads start as zeros or ones, which hides gradients that are wrong.
    """
    leaves, tree = jax.tree.flatten(shapes)

    def draw(i, shape):
        if len(shape) < 2:
            return 0.5 + 0.4 * normal(seed + i, *shape)
        return weight(seed + i, int(np.prod(shape[:-1])), *shape)

    return jax.tree.unflatten(tree, [draw(i, p.shape) for i, p in enumerate(leaves)])
