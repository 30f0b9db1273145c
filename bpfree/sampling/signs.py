"""Signs, 32 to a random word.

Words are packed within an example, and along the last axis if 32 divides it, so that any
sharded axis unpacks locally; what is small is hashed flat.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.sampling.words import SMALL

_WORD = 32  # signs in one random word
FEW = 4  # words of a row that are told apart one by one


def packed(shape: tuple[int, ...], batch_axis: int | None) -> tuple[int, ...]:
    """Shape of the words for signs of this shape."""
    rows, *rest = words = _words(shape, batch_axis)
    return words if math.prod(words) > SMALL else (rows, math.prod(rest))


def _words(shape: tuple[int, ...], batch_axis: int | None) -> tuple[int, ...]:
    """An example in each row; its axes, or one for all where 32 does not divide them."""
    rows = 1 if batch_axis is None else shape[batch_axis]
    rest = [n for axis, n in enumerate(shape) if axis != batch_axis]
    if rest and rest[-1] % _WORD == 0:
        return (rows, *rest[:-1], rest[-1] // _WORD)
    return rows, -(-math.prod(rest) // _WORD)


def unpacked(words, shape: tuple[int, ...], batch_axis: int | None) -> jax.Array:
    """Signs of this shape, float32, from words of the shape `packed`.

    The barrier keeps XLA from hashing the words again in every reader.
    """
    words = lax.optimization_barrier(words).reshape(_words(shape, batch_axis))
    if words.ndim > 2 and words.shape[-1] <= FEW:
        top_bit = lax.platform_dependent(words, tpu=_selected, default=_top_bits)
    else:
        top_bit = _top_bits(words)
    one = jnp.uint32(0x3F800000)  # float32 1.0, whose top bit is the sign
    signs = lax.bitcast_convert_type(top_bit | one, jnp.float32)
    rest = [n for axis, n in enumerate(shape) if axis != batch_axis]
    if words.ndim == 2:
        signs = signs[:, : math.prod(rest)].reshape(-1, *rest)
    return (
        signs.reshape(shape) if batch_axis is None else jnp.moveaxis(signs, 0, batch_axis)
    )


def _top_bits(words: jax.Array) -> jax.Array:
    """(..., n) words as (..., 32 n) of them, each with one bit, at the top."""
    places = np.arange(_WORD, dtype=np.uint32).reshape((1,) * words.ndim + (-1,))
    top_bit = (words[..., None] >> places) << (_WORD - 1)
    return top_bit.reshape(*words.shape[:-1], -1)


def _selected(words: jax.Array) -> jax.Array:
    """`_top_bits` without a reshape, which a TPU fuses in any layout.

    With it, it writes 32 bits a sign, and copies them where channels are not last.
    """
    *lead, count = words.shape
    places = np.arange(_WORD * count).reshape((1,) * len(lead) + (-1,))
    found = jnp.broadcast_to(words[..., :1], (*lead, _WORD * count))
    for i in range(1, count):
        found = jnp.where(places // _WORD == i, words[..., i : i + 1], found)
    return (found >> np.uint32(places % _WORD)) << (_WORD - 1)
