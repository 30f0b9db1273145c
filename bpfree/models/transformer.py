"""Decoder-only transformer: what comes next, at every position of a sequence."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class Model(nn.Module):
    """Pre-norm blocks of causal attention and MLP over numbered symbols; then Dense.

    Every product that writes to the residual stream is one Dense layer, so that noise on
    its output is the one noise of that sum. Norms have no parameters: a
    learned scale in front of a kernel would get its gradient through the kernel.

    Attributes:
      num_classes: symbols, numbered from 0; they are what is read and what is predicted.
      width: of the residual stream.
      depth: blocks.
      heads: of attention; `width` is a multiple.
    """

    num_classes: int
    width: int = 64
    depth: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Numbers (B, T) to logits (B, T, num_classes), which read x[:, :t + 1] at t.

        Raises ValueError: x is not (B, T); width is no multiple of heads.
        """
        if x.ndim != 2:
            raise ValueError(f"examples of shape {x.shape[1:]} are no rows of numbers")
        x = embedded(jax.nn.one_hot(x, self.num_classes), self.width)
        for _ in range(self.depth):
            x = Block(self.heads, causal=True)(x)
        return nn.Dense(self.num_classes)(norm(x))


class Block(nn.Module):
    """x + attention, then that + MLP, each of the normalised sum before it.

    Attributes:
      heads: of attention.
      causal: position t attends to 0 .. t only.
    """

    heads: int
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) to the same."""
        width, h = x.shape[-1], norm(x)
        query, key, value = (
            nn.Dense(width, use_bias=False, name=name)(h)
            for name in ("query", "key", "value")
        )
        mixed = attention(query, key, value, self.heads, self.causal)
        x = x + nn.Dense(width, name="out")(mixed)
        h = nn.gelu(nn.Dense(4 * width, name="expand")(norm(x)))
        return x + nn.Dense(width, name="contract")(h)


def embedded(x: jax.Array, width: int) -> jax.Array:
    """x W + P, for x (B, T, features), with learned P (T, width); (B, T, width).

    Both are rows of one kernel, so that their sum is one layer's output. Call it inside a
    compact method.
    """
    size, steps, _ = x.shape
    place = jnp.broadcast_to(jnp.eye(steps, dtype=x.dtype), (size, steps, steps))
    layer = nn.Dense(width, use_bias=False)
    return layer(jnp.concatenate([x, place], -1))


def norm(x: jax.Array) -> jax.Array:
    """(x - mean) / standard deviation, over the last axis."""
    return nn.LayerNorm(use_scale=False, use_bias=False)(x)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, causal: bool
) -> jax.Array:
    r"""softmax(Q K^T / sqrt(d)) V for each head of d = width / heads; all (B, T, width).

    Raises ValueError: width is no multiple of heads.
    """
    size, steps, width = query.shape
    if width % heads:
        raise ValueError(f"width={width} must be a multiple of heads={heads}")
    query, key, value = (
        a.reshape(size, steps, heads, width // heads) for a in (query, key, value)
    )
    past = nn.make_causal_mask(jnp.ones((1, steps))) if causal else None
    mixed = nn.dot_product_attention(query, key, value, mask=past)
    return mixed.reshape(size, steps, width)
