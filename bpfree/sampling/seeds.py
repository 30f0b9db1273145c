"""Seeds of runs, and keys as states and checkpoints hold them.

A state holds its key as raw words, uint32 (2,): `jax.tree` functions, pickle and
serializers treat it as any array, which typed keys do not allow. All keys are threefry:
`vmap` over keys of other kinds draws other numbers.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp

_IMPL = "threefry2x32"
_WORD = 2**32


def as_key(seed: Any) -> jax.Array:
    """The typed threefry key of a seed: a whole number >= 0, or a typed key.

    Words of a number above the lowest 32 bits are folded in one by one, so that 1 and
    2**32 + 1 are different seeds. ValueError for other numbers.
    """
    if isinstance(seed, jax.Array):
        return _of_array(seed)
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(
            f"seed={seed!r} must be a whole number, at least 0, or a typed PRNG key"
        )
    key = jax.random.key(jnp.uint32(number % _WORD), impl=_IMPL)
    while number := number // _WORD:
        key = jax.random.fold_in(key, jnp.uint32(number % _WORD))
    return key


def _of_array(seed: jax.Array) -> jax.Array:
    if not jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return jax.random.key(seed, impl=_IMPL)
    if str(jax.random.key_impl(seed)) == _IMPL:
        return jax.random.clone(seed)  # a donated state must not take the caller's key
    words = jax.random.bits(seed, (2,), jnp.uint32)
    return jax.random.wrap_key_data(words, impl=_IMPL)


def words_of(seed: Any) -> jax.Array:
    """The key of a seed as a state holds it: its words, uint32 (2,)."""
    return jnp.array(jax.random.key_data(as_key(seed)))


def from_words(words: jax.Array) -> jax.Array:
    """The typed key of the words in a state."""
    return jax.random.wrap_key_data(words, impl=_IMPL)
