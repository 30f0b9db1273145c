"""Maps over parts of the batch, all parts side by side.

    lax.map(f, x.reshape(parts, B / parts, ...))  =  vmap(f)(x.reshape(...))

A loss function that goes through its batch in micro-batches saves what backpropagation
would keep of a whole batch. Here nothing is kept, while the noise of a node in such a
loop would have its examples on two axes, of which one is the loop's. Side by side both
are axes of one array.
"""

from collections.abc import Set
from itertools import compress
from typing import Any

import jax

from bpfree.program import rewriting, tags
from bpfree.program.flat import Path
from bpfree.program.loops import with_carries


def maps_opened(jaxpr, consts, args, paths: Set[Path]) -> tuple[Any, Any]:
    """(jaxpr, constants) with the loops at these paths as `vmap`s.

    What they carry must not move with parameters or noise, or not reach the losses: it is
    computed first, in a loop.

    Args:
      args: shapes of the inputs, flat.
    """
    inside = {path[:i] for path in paths for i in range(len(path))}

    def run(jaxpr, consts, args, path: Path):
        def each(i, eqn, invals):
            here = (*path, i)
            if here in paths:
                return _side_by_side(eqn, invals) or tags.bind_eqn(eqn, invals)
            if here not in inside:
                return tags.bind_eqn(eqn, invals)
            if eqn.primitive.name in tags.INLINED:
                return run(*tags.body_of(eqn), invals, here)

            def body(jaxpr, consts, args, k=0):
                return run(jaxpr, consts, args, (*here, k))

            return rewriting.reopened(eqn, invals, body)

        return rewriting.walk(jaxpr, consts, args, each)

    def opened(*args):
        return run(jaxpr, consts, args, ())

    return rewriting.to_jaxpr(opened, args)[:2]


def _side_by_side(eqn, invals) -> list[Any]:
    """The results of a loop without one; [] where an operation has no `vmap`."""
    jaxpr, closed = tags.body_of(eqn)
    consts, carry, xs = tags.split_scan(eqn.params, invals)
    carry, xs = list(carry), list(xs)

    def at(jaxpr, args):
        return rewriting.replay(jaxpr, closed, args, tags.bind_eqn, rewriting.never)

    def ys(carry, xs):
        return at(jaxpr, [*consts, *carry, *xs])[len(carry) :]

    last, carries = _carried(eqn, jaxpr, consts, carry, xs, at) if carry else ([], [])
    try:
        return [*last, *jax.vmap(ys)(carries, xs)]
    except Exception:  # the operation's own refusal
        return []


def _carried(eqn, jaxpr, consts, carry, xs, at) -> tuple[list[Any], list[Any]]:
    """(last carry, carry before each step), of a loop that computes nothing else."""
    n, m = len(consts), len(carry)
    ends = [i < m for i in range(len(jaxpr.outvars))]
    part, used = tags.dce(jaxpr, ends)
    read = list(compress(xs, used[n + m :]))

    def body(consts, carry, x):
        steps = iter(x)
        every = [next(steps) if mine else None for mine in used[n + m :]]
        return at(part, list(compress([*consts, *carry, *every], used))), None

    options = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
    (last, _), carries = with_carries(body, consts, carry, read, **options)
    return last, carries
