"""Convolutions with a kernel plus a low-rank term of each sample, as one convolution.

    x_k * (W + A_k B_k^T) = x_k * W + (x_k * A_k) B_k^T

The filters A_k of all samples that stand side by side are further output channels of the
kernel W, of which each sample uses its own. So every input is read once, in one layout,
where `vmap` would make a convolution with groups of the second term.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Convolve = Callable[[jax.Array, jax.Array], jax.Array]


def apart(convolve: Convolve, channel: int, precision) -> Callable[..., jax.Array]:
    """`(x, base, left, right) -> x * (base + left right^T)`, its two terms apart.

    Args:
      convolve: (x, kernel (*lead, n)) -> y, whose axis `channel` has n entries.
      precision: of the product with `right` (n, r).
    """

    def of_one(x, base, left, right):
        few = convolve(x, left)
        term = jnp.tensordot(few, right, (channel, 1), precision=precision)
        y = convolve(x, base)
        return y + jnp.moveaxis(term, -1, channel).astype(y.dtype)

    return of_one


def together(convolve: Convolve, batch: tuple[int, int], channel: int, precision):
    """`apart`, whose samples under a `vmap` share one convolution.

    Args:
      convolve, channel, precision: as in `apart`.
      batch: axis of the batch in x, and in y.
    """
    of_one = apart(convolve, channel, precision)

    def of_many(x, base, left, right):
        """Samples in front of all but the base."""
        n, count = base.shape[-1], len(x)
        filters = jnp.moveaxis(left, 0, -2).reshape(*base.shape[:-1], -1)
        if count == 1 or filters.shape[-1] > n:  # more channels than the layer has
            return jax.vmap(of_one, (0, None, 0, 0))(x, base, left, right)
        x = lax.collapse(jnp.moveaxis(x, 0, batch[0]), batch[0], batch[0] + 2)
        both = convolve(x, jnp.concatenate([base, filters], -1))
        both = both.reshape(
            *both.shape[: batch[1]], count, -1, *both.shape[batch[1] + 1 :]
        )
        both = jnp.moveaxis(both, (batch[1], channel + 1), (0, -1))
        y, few = both[..., :n], both[..., n:]
        few = few.reshape(*few.shape[:-1], count, -1)
        own = jnp.eye(count, dtype=bool).reshape(count, *[1] * (y.ndim - 2), count, 1)
        few = jnp.where(own, few, 0).sum(-2, dtype=few.dtype)
        term = jnp.einsum("k...r,knr->k...n", few, right, precision=precision)
        return jnp.moveaxis(y + term.astype(y.dtype), -1, channel + 1)

    @jax.custom_batching.custom_vmap
    def many(x, base, left, right):
        return of_many(x, base, left, right)

    @many.def_vmap
    def more(size, batched, x, base, left, right):
        if batched[1] or not (batched[0] and batched[2]):
            axes = tuple(0 if b else None for b in batched)
            return jax.vmap(of_many, axes)(x, base, left, right), True
        if not batched[3]:
            right = jnp.broadcast_to(right, (size, *right.shape))
        x, left, right = (lax.collapse(a, 0, 2) for a in (x, left, right))
        y = many(x, base, left, right)
        return y.reshape(size, -1, *y.shape[1:]), True

    def one(x, base, left, right):
        return many(x[None], base, left[None], right[None])[0]

    return one
