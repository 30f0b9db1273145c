"""`lax.scan` whose derivative is taken at all steps at once, where none needs the next.

    carry_t, y_t = body(consts, carry_{t-1}, x_t)

With the graph cut at the nodes, the derivative of a recurrent cell stops inside the step:
carry_t does not move with the parameters, because every path from them to it crosses a
node. The steps are then apart given the carries, and

    dy_t = d body(consts, carry_{t-1}, x_t) . (dconsts, dx_t)          at all t, by vmap

whose transpose has one product per kernel, over (time x batch), in the place of a reverse
loop of T small ones. Kept are the carries and what the derivative reads of the inputs.
Whether the carry moves is read from the derivative of one step; where it does (a block
that reaches into the next step, a learned initial state) the loop is differentiated as
`lax.scan` is.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from bpfree import _jaxpr

Body = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan(
    body: Body, consts, carry, xs, segment: int | None = None, **options
) -> tuple[Any, Any]:
    """`lax.scan(partial(body, consts), carry, xs, **options)`; see the module docstring.

    Args:
      body: `(consts, carry, x) -> (carry, y)`; it closes over nothing that moves.
      consts, carry, xs: trees of arrays; xs with the steps in front.
      segment: steps taken at once; what one of them computes on the way is then made
        again for the derivative, and not kept. None: all.
      options: of `lax.scan`.
    """

    def looped(consts, carry, xs):
        return lax.scan(lambda c, x: body(consts, c, x), carry, xs, **options)

    def with_carries(consts, carry, xs):
        def step(carry, x):
            new, y = body(consts, carry, x)
            return new, (carry, y)

        last, (carries, ys) = lax.scan(step, carry, xs, **options)
        return (last, ys), carries

    def side_by_side(consts, carries, xs):
        if segment is None:
            return jax.vmap(lambda c, x: body(consts, c, x)[1])(carries, xs)
        step = jax.checkpoint(lambda consts, c, x: body(consts, c, x)[1])
        apart = lambda both: step(consts, *both)  # noqa: E731
        return lax.map(apart, (carries, xs), batch_size=segment)

    def derivative(primals, tangents):
        moving = _moving(tangents)
        if _carry_moves(body, primals, moving):
            return _jvp(looped, primals, tangents, moving)
        (last, ys), carries = with_carries(*primals)
        consts, _, xs = primals
        _, dys = _jvp(side_by_side, (consts, carries, xs), tangents, moving)
        return (last, ys), (jax.tree.map(_still, last), dys)

    run = jax.custom_jvp(looped)
    run.defjvp(derivative, symbolic_zeros=True)
    return run(consts, carry, xs)


def _moving(tangents) -> list[bool]:
    """Whether each leaf of the arguments has a tangent."""
    leaves = jax.tree.leaves(tangents, is_leaf=_is_zero)
    return [not _is_zero(t) for t in leaves]


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _still(x):
    return zero_from_primal(x, symbolic_zeros=True)


def _carry_moves(body: Body, primals, moving: list[bool]) -> bool:
    """Whether one step moves its carry along what moves."""
    consts, carry, xs = primals
    if any(moving[len(jax.tree.leaves(consts)) :][: len(jax.tree.leaves(carry))]):
        return True

    def step(primals, tangents):
        return _jvp(lambda *args: body(*args)[0], primals, tangents, moving)[1]

    one = consts, carry, jax.tree.map(lambda x: x[0], xs)
    jaxpr, _ = _jaxpr.open_jaxpr(jax.make_jaxpr(step)(one, one))
    _, used = _jaxpr.dce(jaxpr, [True] * len(jaxpr.outvars))
    return any(used[len(used) // 2 :])


def _jvp(function, primals, tangents, moving: list[bool]):
    """`jax.jvp` along the leaves that move: the others stay constants."""
    leaves, tree = jax.tree.flatten(primals)
    directions = jax.tree.leaves(tangents, is_leaf=_is_zero)
    chosen = [i for i, moves in enumerate(moving) if moves]

    def of_moving(*values):
        placed = list(leaves)
        for i, value in zip(chosen, values, strict=True):
            placed[i] = value
        return function(*jax.tree.unflatten(tree, placed))

    return jax.jvp(
        of_moving, [leaves[i] for i in chosen], [directions[i] for i in chosen]
    )
