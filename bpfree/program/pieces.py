"""Pieces of an array, taken so that what reads them compiles once.

XLA's CPU compiler builds equal fusions once. Readers of slices differ in their offsets,
so each is built anew; readers of a gather do not, whose indices are data.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def pieces(x: jax.Array, places: Sequence[np.ndarray], axis: int) -> list[jax.Array]:
    """`[jnp.take(x, own, axis) for own in places]`; the places lie within x.

    No slices, for another reason too: where a piece is sharded along the axis, a slice
    would have its sharding reach all of x, whose other pieces stand on other devices.
    """
    return [_taken(x, own.astype(np.int32), axis % x.ndim) for own in places]


@partial(jax.jit, static_argnums=2)  # one function for all pieces of a size
def _taken(x, own, axis: int) -> jax.Array:
    count = len(own)
    if count == 1:  # one index, or one twice, would be made a slice or a constant
        own = jnp.append(own, jnp.int32(0))
    rest = tuple(i for i in range(x.ndim) if i != axis)
    numbers = lax.GatherDimensionNumbers(rest, (axis,), (axis,))
    sizes = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    found = lax.gather(x, own[:, None], numbers, sizes, mode=mode)
    return lax.slice_in_dim(found, 0, count, axis=axis)
