"""Random words of many arrays, hashed by few programs.

Word j of a key is the xor of both halves of threefry(key, j), which is also what
`jax.random.bits` makes of it. XLA compiles a loop of hashing for each call, most of the
program of a small model's noise: here small arrays stand side by side in one call, and
large ones of one shape share one.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p

from bpfree.program.pieces import pieces

SMALL = 2**13  # words; to hash a larger array takes longer than to compile that
_NARROW = 2**11  # words along the last axis, for each of which an index is kept


def random_words(
    keys: jax.Array,
    shapes: Sequence[tuple[int, ...]],
    entry: Callable[[jax.Array], jax.Array] = lambda words: words,
) -> list[jax.Array]:
    """`entry(jax.random.bits(keys[k, i], shapes[i]))` for each i: (c, *shapes[i]).

    Small arrays that differ in their last axis alone are joined along it, so that their
    other axes, the batch's among them, may be sharded.

    Args:
      keys: threefry keys (c, n).
      shapes: of n arrays of words, none of them ().
      entry: what is made of each word.
    """

    def kind(shape: tuple[int, ...]) -> tuple[int, ...]:
        joined = math.prod(shape) <= SMALL and shape[-1] <= _NARROW
        return (*shape[:-1], -1) if joined else shape

    kinds = [kind(shape) for shape in shapes]
    found: dict[int, jax.Array] = {}
    for one in dict.fromkeys(kinds):
        alike = [i for i, other in enumerate(kinds) if other == one]
        draw = _joined if one[-1] < 0 else _stacked
        words = draw(keys[:, np.array(alike)], [shapes[i] for i in alike], entry)
        found |= dict(zip(alike, words, strict=True))
    return [found[i] for i in range(len(shapes))]


def _stacked(keys, shapes, entry) -> list[jax.Array]:
    """In rows, the first two axes as they are: they may be sharded."""
    draws, arrays = keys.shape
    shape = shapes[0]

    def one(key):
        rows = (*shape[:2], math.prod(shape[2:]))
        return entry(jax.random.bits(key, rows, jnp.uint32)).reshape(shape)

    every = jax.vmap(one)(keys.reshape(-1))
    first = np.arange(draws) * arrays
    return pieces(every, [first + i for i in range(arrays)], 0)


def _joined(keys, shapes, entry) -> list[jax.Array]:
    """Side by side along the last axis; the joined words are hashed by all devices."""
    lead, widths, draws = shapes[0][:-1], [shape[-1] for shape in shapes], len(keys)
    owner = np.repeat(np.arange(len(shapes)), widths)
    stride = np.repeat(np.array(widths, np.uint32), widths)
    place = np.concatenate([np.arange(n, dtype=np.uint32) for n in widths])
    whole = (*lead, draws, len(owner))
    rows = lax.iota(jnp.uint32, math.prod(lead)).reshape(*lead, 1)
    count = jnp.expand_dims(rows * _spread(stride, rows) + _spread(place, rows), -2)
    data = jax.random.key_data(keys)[:, owner]
    high, low = (_spread(data[..., half], count) for half in (0, 1))
    inputs = high, low, jnp.zeros_like(count), count
    first, second = threefry2x32_p.bind(*(_flat(x, whole) for x in inputs))
    words = entry(first ^ second).reshape(whole)
    columns = np.split(np.arange(len(owner)), np.cumsum(widths)[:-1])
    return [jnp.moveaxis(own, -2, 0) for own in pieces(words, columns, -1)]


def _spread(x, like) -> jax.Array:
    """With axes in front, to be broadcast against `like`."""
    return jnp.reshape(x, (1,) * (like.ndim - np.ndim(x)) + np.shape(x))


def _flat(x, shape) -> jax.Array:
    """Broadcast, and draws and columns made one axis: short loops would be unrolled."""
    return jnp.broadcast_to(x, shape).reshape(*shape[:-2], -1)
