"""Rows of what a convolution multiplies: its windows, without forming them all."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def windows(
    x: jax.Array, sizes: tuple[int, ...], params: dict[str, Any], key, cap: int
) -> jax.Array:
    """At most `cap` windows of a convolution's input, all of them or drawn at random.

    Args:
      x: its left operand.
      sizes: of the window, one for each spatial axis.
      params: of the equation: strides, padding and dilations count as they are there.

    Returns: (n, C, offsets), zero where the padding is.
    """
    batch, channel, *space = params["dimension_numbers"].lhs_spec
    x = x.transpose([batch, *space, channel])
    gaps = [d - 1 for d in params["lhs_dilation"]]
    pads = [(*p, gap) for p, gap in zip(params["padding"], gaps, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    steps, strides = params["rhs_dilation"], params["window_strides"]
    spans = [(k - 1) * step + 1 for k, step in zip(sizes, steps, strict=True)]
    places = [
        (n - span) // stride + 1
        for n, span, stride in zip(x.shape[1:-1], spans, strides, strict=True)
    ]
    grid = (len(x), *places)
    total = int(np.prod(grid))
    chosen = jnp.arange(total) if total <= cap else _draw(key, cap, total)
    example, *where = jnp.unravel_index(chosen, grid)
    starts = [w * stride for w, stride in zip(where, strides, strict=True)]
    every = (slice(None), *(slice(None, None, step) for step in steps))

    def cut(example, *start):
        piece = lax.dynamic_slice(
            x, (example, *start, jnp.zeros_like(example)), (1, *spans, x.shape[-1])
        )
        return piece[every].reshape(-1, x.shape[-1]).T

    return jax.vmap(cut)(example, *starts)


def drawn(rows: jax.Array, key, cap: int) -> jax.Array:
    """At most `cap` of the rows of (g, n, d): all of them or drawn at random."""
    n = rows.shape[1]
    return rows if n <= cap else rows[:, _draw(key, cap, n)]


def _draw(key, count: int, total: int) -> jax.Array:
    """With replacement: sorting all of them would cost more than the repeats."""
    return jax.random.randint(key, (count,), 0, total)
