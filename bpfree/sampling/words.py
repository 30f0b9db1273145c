"""Random words of many arrays, hashed by one program.

Word j of a key is the xor of both halves of threefry(key, j), which is also what
`jax.random.bits` makes of it. XLA compiles a loop of hashing for every call, and that is
most of the program of a small model's noise: here small arrays stand side by side.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.random import threefry2x32_p

_SMALL = 2**16  # words; a larger array takes longer to hash than to compile


def random_words(keys: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """`jax.random.bits(keys[i], shapes[i], jnp.uint32)` for each i, threefry keys.

    Arrays that differ in their last axis alone are joined along it, so that their other
    axes, the batch's among them, may be sharded.
    """
    small = [i for i, shape in enumerate(shapes) if math.prod(shape) <= _SMALL]
    found = {
        i: jax.random.bits(keys[i], shape, jnp.uint32)
        for i, shape in enumerate(shapes)
        if i not in small
    }
    for lead in dict.fromkeys(shapes[i][:-1] for i in small):
        alike = [i for i in small if shapes[i][:-1] == lead]
        widths = [shapes[i][-1] for i in alike]
        words = _joined(jax.random.key_data(keys[jnp.array(alike)]), lead, widths)
        ends = [sum(widths[: n + 1]) for n in range(len(widths))]
        found |= dict(zip(alike, jnp.split(words, ends[:-1], -1), strict=True))
    return [found[i] for i in range(len(shapes))]


def _joined(data: jax.Array, lead: tuple[int, ...], widths: Sequence[int]) -> jax.Array:
    """Words (*lead, sum of widths) of the keys' data (n, 2)."""
    shape = (*lead, sum(widths))

    def columns(of: Callable[[int, int], jax.Array]) -> jax.Array:
        parts = [of(i, width) for i, width in enumerate(widths)]
        return jnp.broadcast_to(jnp.concatenate(parts), shape)

    high, low = (columns(lambda i, n, h=h: jnp.full(n, data[i, h])) for h in (0, 1))
    stride = columns(lambda i, n: jnp.full(n, n, jnp.uint32))
    place = columns(lambda i, n: lax.iota(jnp.uint32, n))
    rows = lax.iota(jnp.uint32, math.prod(lead)).reshape(*lead, 1)
    count = jnp.broadcast_to(rows, shape) * stride + place
    first, second = threefry2x32_p.bind(high, low, jnp.zeros_like(count), count)
    return first ^ second
