"""What a rule of decorrelation is, and what rules have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.decorrelation.moments import product


class Rule(NamedTuple):
    """What `decorrelate` asks of a rule. G, O, d as in `layout`.

    Attributes:
      init: (G, d, dtype) -> state.
      move: (state, rows (G, n, d)) -> state.
      gradient: (state, g_A (G, O, d)) -> the gradient that the inner optimiser sees.
      update: (state, u (G, O, d)) -> the change of A that its update makes.
      folded: the weights are A = W R: they follow `state.matrix` when it moves.

    Example:
        >>> rule = bpfree.decorrelation.dbp()
        >>> state = rule.init(1, 3, jnp.float32)
        >>> state = rule.move(state, jax.random.normal(jax.random.key(0), (1, 8, 3)))
        >>> rule.gradient(state, jnp.ones((1, 2, 3))).shape
        (1, 2, 3)
    """

    init: Callable[..., Any]
    move: Callable[[Any, jax.Array], Any]
    gradient: Callable[[Any, jax.Array], jax.Array]
    update: Callable[[Any, jax.Array], jax.Array]
    folded: bool


def by_matrix(state, m: jax.Array) -> jax.Array:
    """m R: an update of W as one of A = W R."""
    return product(m, state.matrix)


def by_transpose(state, m: jax.Array) -> jax.Array:
    """m R^T: the gradient at A = W R as the one at W."""
    return product(m, state.matrix.mT)


def identities(blocks: int, d: int, dtype) -> jax.Array:
    """R (G, d, d) at the start."""
    return jnp.broadcast_to(jnp.eye(d, dtype=dtype), (blocks, d, d))
