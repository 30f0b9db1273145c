"""Second moments of inputs, never formed where there are fewer rows than features.

Throughout, x (G, n, d) are n rows of d features in G independent blocks, S = x^T x / n
their second moment, v its diagonal and C = S - diag v.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b of stacks of matrices, in full precision whatever the backend's default."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def second_moment(x: jax.Array) -> jax.Array:
    """S (G, d, d)."""
    return product(x.mT, x) / x.shape[1]


def variances(x: jax.Array) -> jax.Array:
    """v (G, d): mean squares, about zero and not about the mean."""
    return jnp.mean(x**2, axis=1)


def times(x: jax.Array, m: jax.Array) -> jax.Array:
    """S m for m (G, d, k), in the order of products that is cheaper: 4 n d k FLOPs, or
    2 n d^2 + 2 d^2 k."""
    n, d, k = x.shape[1], x.shape[2], m.shape[2]
    if 2 * n * k < n * d + d * k:
        return product(x.mT, product(x, m)) / n
    return product(second_moment(x), m)


def largest_eigenvalue(
    apply: Callable[[jax.Array], jax.Array], shape, dtype, steps: int = 12
) -> jax.Array:
    """The modulus of the largest eigenvalue of a symmetric map of (G, d), (G,).

    By power iteration from a fixed vector, so from below.
    """
    start = jax.random.normal(jax.random.key(7), shape, dtype)

    def step(vector, _):
        image = apply(vector)
        length = jnp.linalg.norm(image, axis=1)
        return image / jnp.maximum(length, jnp.finfo(dtype).tiny)[:, None], length

    start = start / jnp.linalg.norm(start, axis=1)[:, None]
    _, lengths = lax.scan(step, start, length=steps)
    return lengths[-1]


def correlation(x: jax.Array) -> jax.Array:
    """Mean squared off-diagonal correlation C_ij^2 / (v_i v_j) of all blocks, ().

    n independent rows of uncorrelated features give 1 / n, not 0. Features that are
    always zero do not count.
    """
    n, d = x.shape[1:]
    v = variances(x)
    live = (v > 0).astype(x.dtype)
    scaled = x / jnp.sqrt(jnp.where(v > 0, v, 1))[:, None]
    # The squares of x^T x and of x x^T have the same sum.
    gram = product(scaled.mT, scaled) if d < n else product(scaled, scaled.mT)
    features = live.sum(1)
    energy = jnp.sum((gram / n) ** 2, (1, 2)) - features
    pairs = features * (features - 1)
    return energy.sum() / jnp.maximum(pairs.sum(), 1)
