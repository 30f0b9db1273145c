"""Functions of weights plus low-rank terms, without forming the sums.

    x (W + A B^T) = x W + (x A) B^T                 A (m, r), B (n, r)

`evaluate` runs any JAX function on such sums. Where one meets a matrix product or a
convolution, the right-hand side is computed, whose first term is the same for every A
and B; where it meets anything else, it is added up. So no model has to be written in
layers of ours, and what has no rule costs time, not correctness.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.program import columns, products, rewriting, tags


class LowRank(NamedTuple):
    """The array base + left right^T.

    Attributes:
      base: (*lead, n).
      left: (*lead, r).
      right: (n, r).
    """

    base: jax.Array
    left: jax.Array
    right: jax.Array

    def full(self) -> jax.Array:
        """The sum itself, (*lead, n)."""
        return self.base + self.left @ self.right.T


def evaluate(fn: Callable[..., Any], *args) -> Any:
    """`fn(*args)`, whose leaves may be LowRank; our own marks in `fn` are dropped."""
    leaves, tree = jax.tree.flatten(args, is_leaf=_is_low_rank)
    shapes = [jax.typeof(a.base if _is_low_rank(a) else a) for a in leaves]
    jaxpr, consts, out = rewriting.to_jaxpr(fn, jax.tree.unflatten(tree, shapes))
    outs = map(_full, _replay(jaxpr, consts, leaves, {}))
    return jax.tree.unflatten(jax.tree.structure(out), list(outs))


def _is_low_rank(x: Any) -> bool:
    return isinstance(x, LowRank)


def _with_low_rank(eqn, invals) -> bool:
    return any(map(_is_low_rank, invals))


Moving = dict[int, Any]
"""{id: value} of arrays that were made of sums, and so have samples as these have."""


def _replay(jaxpr, consts, args, moving: Moving) -> list[Any]:
    def bind(eqn, invals):
        outs = _bind(eqn, invals, moving)
        if _with_low_rank(eqn, invals) or any(id(x) in moving for x in invals):
            moving.update((id(y), y) for y in outs)
        return outs

    return rewriting.replay(jaxpr, consts, args, bind, _with_low_rank)


def _full(x: Any) -> Any:
    return x.full() if _is_low_rank(x) else x


def _bind(eqn, invals, moving: Moving) -> list[Any]:
    name = eqn.primitive.name
    if eqn.primitive is tags.tag_p:
        return invals
    if not _with_low_rank(eqn, invals):
        return tags.bind_eqn(eqn, invals)
    if name in tags.REMAT:
        return _replay(*tags.body_of(eqn), invals, moving)
    rule = _RULES.get(name)
    out = rule(eqn, invals, moving) if rule else None
    return tags.bind_eqn(eqn, list(map(_full, invals))) if out is None else out


# ------------------------------------------------- rules; None where one does not apply


def _cast(eqn, invals, moving):
    return [LowRank(*(tags.bind_eqn(eqn, [part])[0] for part in invals[0]))]


def _dot(eqn, invals, moving):
    """The product with the base, and one einsum, which finds the cheap order."""
    lhs, rhs = invals
    if _is_low_rank(lhs):
        rhs = _full(rhs)
    numbers = eqn.params["dimension_numbers"]
    on_lhs, on_rhs, out = _letters(numbers, _ndim(lhs), _ndim(rhs))
    matrix, indices = (lhs, on_lhs) if _is_low_rank(lhs) else (rhs, on_rhs)
    x, x_indices = (rhs, on_rhs) if _is_low_rank(lhs) else (lhs, on_lhs)
    options = ("precision", "preferred_element_type")
    chosen = tuple((key, eqn.params[key]) for key in options)
    letters = tuple(map(tuple, (x_indices, indices, out)))
    term = _term(x, matrix.left, matrix.right, letters, chosen)
    base = [v.base if _is_low_rank(v) else v for v in (lhs, rhs)]
    return [tags.bind_eqn(eqn, base)[0] + term]


@partial(jax.jit, static_argnums=(3, 4))  # one function for all products alike
def _term(x, left, right, letters, options) -> jax.Array:
    of_x, of_matrix, out = letters
    rank = len(of_x) + len(of_matrix)

    def einsum(x, left, right):
        operands = x, of_x, left, (*of_matrix[:-1], rank), right, (of_matrix[-1], rank)
        return jnp.einsum(*operands, out, optimize="optimal", **dict(options))

    return rewriting.rewritten(einsum, products.bind)(x, left, right)


def _ndim(x) -> int:
    return jnp.ndim(x.base if _is_low_rank(x) else x)


def _letters(numbers, lhs_ndim, rhs_ndim) -> tuple[list[int], list[int], list[int]]:
    """Einsum indices of lhs, rhs and output of a dot_general."""
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = numbers
    lhs = list(range(lhs_ndim))
    rhs = list(range(lhs_ndim, lhs_ndim + rhs_ndim))
    for i, j in zip((*lhs_sum, *lhs_batch), (*rhs_sum, *rhs_batch), strict=True):
        rhs[j] = lhs[i]
    shared = [lhs[i] for i in (*lhs_sum, *lhs_batch)]
    free = [i for i in (*lhs, *rhs) if i not in shared]
    return lhs, rhs, [*(lhs[i] for i in lhs_batch), *free]


def _conv(eqn, invals, moving):
    """A convolution with r filters, and a product over them at every position.

    Where the input moves with the samples, they share one convolution.
    """
    x, kernel = invals
    numbers = eqn.params["dimension_numbers"]
    grouped = eqn.params["feature_group_count"] * eqn.params["batch_group_count"] > 1
    if grouped or _is_low_rank(x) or numbers.rhs_spec[0] != len(numbers.rhs_spec) - 1:
        return None
    batch, channel = (numbers.lhs_spec[0], numbers.out_spec[0]), numbers.out_spec[1]
    convolve = lambda x, kernel: tags.bind_eqn(eqn, [x, kernel])[0]  # noqa: E731
    precision = eqn.params["precision"]
    if id(x) not in moving:  # its product with the base is the same for all samples
        return [columns.apart(convolve, channel, precision)(x, *kernel)]
    return [columns.together(convolve, batch, channel, precision)(x, *kernel)]


def _scan(eqn, invals, moving):
    """Slices of a stack share `right`; what is carried is added up."""
    consts, carry, xs = tags.split_scan(eqn.params, invals)
    length = eqn.params["length"]

    def stacked(x):
        if not _is_low_rank(x):
            return x
        if x.base.ndim == 1:
            return x.full()
        return x._replace(right=jnp.broadcast_to(x.right, (length, *x.right.shape)))

    def evaluate(jaxpr, closed, args):
        moving.update((id(x), x) for x in args)
        return list(map(_full, _replay(jaxpr, closed, args, moving)))

    given = [*consts, *map(_full, carry), *map(stacked, xs)]
    return rewriting.reopened(eqn, given, evaluate)


_RULES = {
    "convert_element_type": _cast,
    "copy": _cast,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "scan": _scan,
}
