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
_MEDIUM = 2**19  # words; larger arrays of several shapes need too much memory at once
_LANES = 128  # words at least in a block


def random_words(
    keys: jax.Array,
    shapes: Sequence[tuple[int, ...]],
    entry: Callable[[jax.Array], jax.Array] = lambda words: words,
) -> list[jax.Array]:
    """`entry(jax.random.bits(keys[k, i], shapes[i]))` for each i: (c, *shapes[i]).

    Small arrays that differ in their last axis alone are joined along it, so that their
    other axes, the batch's among them, may be sharded. Others are cut into blocks of one
    length behind their first two axes, which may be sharded.

    Args:
      keys: threefry keys (c, n).
      shapes: of n arrays of words, none of them ().
      entry: what is made of each word.
    """
    kinds = [_kind(shape) for shape in shapes]
    found: dict[int, jax.Array] = {}
    for one in dict.fromkeys(kinds):
        alike = [i for i, other in enumerate(kinds) if other == one]
        draw, _ = one
        words = draw(keys[:, np.array(alike)], [shapes[i] for i in alike], entry)
        found |= dict(zip(alike, words, strict=True))
    return [found[i] for i in range(len(shapes))]


def _kind(shape: tuple[int, ...]) -> tuple[Callable, tuple[int, ...]]:
    """The function that draws an array, together with others of the same kind."""
    size = math.prod(shape)
    if size <= SMALL and shape[-1] <= _NARROW:
        return _joined, shape[:-1]
    rows = _rows(shape)
    in_lanes = size // math.prod(rows) % _LANES == 0
    return _in_blocks, rows if size <= _MEDIUM and in_lanes else shape


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[: min(2, len(shape) - 1)]


def _in_blocks(keys, shapes, entry) -> list[jax.Array]:
    """Blocks of one length, in rows: one array (draws x blocks, *rows, length)."""
    rows, draws = _rows(shapes[0]), len(keys)
    widths = [math.prod(shape) // math.prod(rows) for shape in shapes]
    length = math.gcd(*widths)
    owner = np.repeat(np.arange(len(shapes)), [width // length for width in widths])
    start = np.concatenate([np.arange(0, n, length) for n in widths])
    stride = np.array(widths, np.uint32)[owner]

    def hashed(key, stride, start):
        row = lax.iota(jnp.uint32, math.prod(rows)).reshape(*rows, 1)
        column = lax.broadcasted_iota(jnp.uint32, (*rows, length), len(rows))
        count = row * stride + start + column
        words = jax.random.key_data(key)  # not broadcast: the loop would carry them
        first, second = threefry2x32_p.bind(*words, jnp.zeros_like(count), count)
        return entry(first ^ second)

    numbers = [np.tile(each, draws) for each in (stride, start.astype(np.uint32))]
    blocks = jax.vmap(hashed)(keys[:, owner].reshape(-1), *numbers)
    own = [np.flatnonzero(np.tile(owner, draws) == i) for i in range(len(shapes))]
    found = [taken.reshape(draws, -1, *rows, length) for taken in pieces(blocks, own, 0)]
    return [
        jnp.moveaxis(each, 1, -2).reshape(draws, *shape)
        for each, shape in zip(found, shapes, strict=True)
    ]


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
