"""Arithmetic on the states (K, B, ...) of K phases."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bpfree.equilibrium.energy import States


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """Their sum, without the 0 that `sum` begins with and XLA would have to add."""
    return functools.reduce(operator.add, terms)


def norm(states: States) -> jax.Array:
    """Euclidean norm over all states of an example: (K, B)."""
    squares = [jnp.square(jnp.abs(h)).sum(tuple(range(2, h.ndim))) for h in states]
    return jnp.sqrt(total(squares))


def minus(a: States, b: States) -> States:
    """a - b, in the dtypes of a; b may have one phase for all of a's."""
    return tuple(x - y.astype(x.dtype) for x, y in zip(a, b, strict=True))


def apart(states: States) -> States:
    """The differences of K real phases from their mean.

    What the free phase left undone moves all phases alike, and cancels in the gradient.
    """
    if states[0].shape[0] == 1:
        return states
    return tuple(h - h.mean(0, keepdims=True) for h in states)


def rms(per_example: jax.Array) -> jax.Array:
    """Root mean square of all entries, ()."""
    return jnp.sqrt(jnp.square(per_example).mean())
