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
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from bpfree.program import rewriting, tags

Body = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan(body: Body, consts, carry, xs, **options) -> tuple[Any, Any]:
    """`lax.scan(partial(body, consts), carry, xs, **options)`; see the module docstring.

    Args:
      body: `(consts, carry, x) -> (carry, y)`; it closes over nothing that moves.
      consts, carry, xs: trees of arrays; xs with the steps in front.
      options: of `lax.scan`.
    """

    def at_all_steps(consts, carries, xs):
        return jax.vmap(lambda c, x: body(consts, c, x)[1])(carries, xs)

    def first(consts, carry, xs):
        return with_carries(body, consts, carry, xs, **options)

    return _apart(body, first, at_all_steps, options)(consts, carry, xs)


def with_carries(body: Body, consts, carry, xs, **options):
    """`((last carry, ys), carries)`: of every step the carry before it."""

    def step(carry, x):
        new, y = body(consts, carry, x)
        return new, (carry, y)

    last, (carries, ys) = lax.scan(step, carry, xs, **options)
    return (last, ys), carries


class _Part(NamedTuple):
    """`number` segments of `size` steps, from step `start` on."""

    start: int
    number: int
    size: int

    @property
    def starts(self):
        return self.start + self.size * jnp.arange(self.number)

    def segment(self, xs, start):
        """(size, ...) of arrays with all steps in front; a reshape would be a copy."""
        cut = lambda a: lax.dynamic_slice_in_dim(a, start, self.size)  # noqa: E731
        return jax.tree.map(cut, xs)


def _parts(length: int, segment: int) -> list[_Part]:
    """Segments of one length, and what is left over."""
    number, rest = divmod(length, segment)
    parts = _Part(0, number, segment), _Part(length - rest, 1, rest)
    return [part for part in parts if part.number and part.size]


def _joined(parts):
    """(steps, ...) of arrays (number, size, ...), one for each part."""
    flat = lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])  # noqa: E731
    return jax.tree.map(lambda *a: jnp.concatenate([*map(flat, a)]), *parts)


def with_starts(segment, body: Body, consts, carry, xs, length, reverse=False, **options):
    """`((last carry, ys), starts)`: for each of `_parts` the carries before segments."""

    def steps(part, carry, start):
        loop = partial(lax.scan, length=part.size, reverse=reverse, **options)
        last, ys = loop(partial(body, consts), carry, part.segment(xs, start))
        return last, (carry, ys)

    parts = _parts(length, segment)
    found = {}
    for part in reversed(parts) if reverse else parts:
        loop = partial(lax.scan, length=part.number, reverse=reverse)
        carry, found[part] = loop(partial(steps, part), carry, part.starts)
    starts, ys = zip(*(found[part] for part in parts), strict=True)
    return (carry, _joined(ys)), starts


def in_segments(done, segment: int) -> Callable[..., tuple[Any, Any]]:
    """A `scan` like the one above, for a loop that has been run before.

    Its steps are taken `segment` at a time; the carries inside one, and what it computes
    on the way, are made again for the derivative, and not kept.

    Args:
      done: what `with_starts` returned of the same loop. Its first ys are returned; the
        second, which may be others, are computed here: `body` returns pairs.
    """
    (last, (outs, _)), starts = done

    def scan(body: Body, consts, carry, xs, length: int, **options):
        def some(part, consts, xs, at):
            carry, start = at
            xs = part.segment(xs, start)
            still = lax.stop_gradient((consts, carry, xs))
            _, carries = with_carries(body, *still, length=part.size, **options)
            return jax.vmap(lambda c, x: body(consts, c, x)[1])(carries, xs)

        def at_all_steps(consts, carry, xs):
            found = []
            for part, start in zip(_parts(length, segment), starts, strict=True):
                one = jax.checkpoint(partial(some, part, consts, xs))
                found.append(lax.map(one, (start, part.starts)))
            return _joined(found)

        def first(consts, carry, xs):
            return (last, (outs, at_all_steps(consts, carry, xs)[1])), carry

        whole = {**options, "length": length}
        return _apart(body, first, at_all_steps, whole)(consts, carry, xs)

    return scan


def _apart(body: Body, first, at_all_steps, options):
    """A loop with the derivative of `at_all_steps`, if its carry does not move."""

    def looped(consts, carry, xs):
        return rewriting.plain_scan(body, consts, carry, xs, **options)

    def derivative(primals, tangents):
        moving = _moving(tangents)
        carry_moves, y_moves = _reached(body, primals, moving)
        if any(carry_moves) or not jax.tree.leaves(primals[1:]):
            return _jvp(looped, primals, tangents, moving)
        (last, ys), carries = first(*primals)
        consts, _, xs = primals
        _, dys = _jvp(at_all_steps, (consts, carries, xs), tangents, moving)
        leaves, tree = jax.tree.flatten(ys)
        dys = [
            dy if moves else _still(y)
            for y, dy, moves in zip(leaves, jax.tree.leaves(dys), y_moves, strict=True)
        ]
        return (last, ys), (jax.tree.map(_still, last), jax.tree.unflatten(tree, dys))

    run = jax.custom_jvp(lambda *args: first(*args)[0])
    run.defjvp(derivative, symbolic_zeros=True)
    return run


def _moving(tangents) -> list[bool]:
    """Whether each leaf of the arguments has a tangent."""
    leaves = jax.tree.leaves(tangents, is_leaf=_is_zero)
    return [not _is_zero(t) for t in leaves]


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _still(x):
    return zero_from_primal(x, symbolic_zeros=True)


def _reached(body: Body, primals, moving: list[bool]) -> tuple[list[bool], list[bool]]:
    """Which leaves of the new carry, and which of y, one step moves along what moves."""
    consts, carry, xs = primals

    def step(primals, tangents):
        return _jvp(body, primals, tangents, moving)[1]

    one = consts, carry, jax.tree.map(lambda x: x[0], xs)
    jaxpr, _ = tags.open_jaxpr(jax.make_jaxpr(step)(one, one))
    ends = range(len(jaxpr.outvars))
    used = [tags.dce(jaxpr, [i == j for j in ends])[1] for i in ends]
    found = [any(of_end[len(of_end) // 2 :]) for of_end in used]
    n, first = len(jax.tree.leaves(carry)), len(jax.tree.leaves(consts))
    from_start = moving[first : first + n]
    return [a or b for a, b in zip(found[:n], from_start, strict=True)], found[n:]


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
