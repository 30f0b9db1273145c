"""Evaluations side by side, or one after another where an operation has no `vmap`.

`ragged_dot` has no rule for a shared weight, nor has many a primitive of other people;
JAX's own for a weight of each sample ends in a TypeError. An error that is none of `vmap`
comes again from the loop.
"""

from collections.abc import Callable

import jax
from jax import lax


def side_by_side(evaluate: Callable) -> Callable:
    """`jax.vmap(evaluate)`, or a loop; one sample is evaluated without an axis."""
    together = or_in_turn(jax.vmap(evaluate), evaluate)

    def run(*samples):
        if any(len(leaf) != 1 for leaf in jax.tree.leaves(samples)):
            return together(*samples)
        only = evaluate(*jax.tree.map(lambda leaf: leaf[0], samples))
        return jax.tree.map(lambda leaf: leaf[None], only)

    return run


def or_in_turn(together: Callable, evaluate: Callable) -> Callable:
    """`together`, or a loop of `evaluate` over the leading axis of its arguments."""

    def run(*samples):
        try:
            return together(*samples)
        except (NotImplementedError, TypeError):
            return in_turn(evaluate)(*samples)

    return run


def in_turn(evaluate: Callable) -> Callable:
    """`jax.vmap(evaluate)` as a loop."""
    return lambda *samples: lax.map(lambda sample: evaluate(*sample), samples)
