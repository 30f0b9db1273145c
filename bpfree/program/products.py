"""Products with a vector, written so that they compile as fast as products of matrices.

XLA's CPU compiler calls a library for a product of matrices, and builds equal fusions
once; but for every product with a vector it builds a kernel (15 to 25 ms each): the
credit of each node, and each weight's rank-1 term. With a second row of zeros it is a
product of matrices, which takes 2 to 11 % longer on small arrays (BUILD_NOTES).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.program import tags

SMALL = 2**19  # entries; for more of them, running time counts


def dot_general(lhs, rhs, numbers, **options) -> jax.Array:
    """`lax.dot_general`; on CPU, small products with a vector get a row of zeros.

    Args:
      numbers: ((lhs, rhs axes that are summed), (lhs, rhs axes of the batch)).
    """
    rows, columns = (
        math.prod(n for axis, n in enumerate(x.shape) if axis not in (*summed, *batch))
        for x, summed, batch in zip((lhs, rhs), *numbers, strict=True)
    )
    with_vector = (rows == 1) != (columns == 1)
    if not with_vector or max(lhs.size, rhs.size) > SMALL:
        return lax.dot_general(lhs, rhs, numbers, **options)
    hashable = tuple(tuple(map(tuple, pair)) for pair in numbers)
    return _of_vector(lhs, rhs, hashable, rows == 1, tuple(options.items()))


@partial(jax.jit, static_argnums=(2, 3, 4))  # one function for all products alike
def _of_vector(lhs, rhs, numbers, is_row: bool, options) -> jax.Array:
    def product(lhs, rhs):
        return lax.dot_general(lhs, rhs, numbers, **dict(options))

    def of_matrices(lhs, rhs):
        # An operand's new axis is the last of its own in the result.
        if is_row:
            own = lhs.ndim - len(numbers[0][0])
            return lax.index_in_dim(product(_and_zeros(lhs), rhs), 0, own, keepdims=False)
        return product(lhs, _and_zeros(rhs))[..., 0]

    return lax.platform_dependent(lhs, rhs, cpu=of_matrices, default=product)


def _and_zeros(x: jax.Array) -> jax.Array:
    return jnp.stack([x, jnp.zeros_like(x)], -1)


def bind(eqn, invals) -> list[jax.Array]:
    """An equation as it stands, or `dot_general` in its place."""
    if eqn.primitive is not lax.dot_general_p:
        return tags.bind_eqn(eqn, invals)
    options = ("precision", "preferred_element_type")
    chosen = {key: eqn.params[key] for key in options}
    lhs, rhs = invals
    return [dot_general(lhs, rhs, eqn.params["dimension_numbers"], **chosen)]
