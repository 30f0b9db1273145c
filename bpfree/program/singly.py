"""A function at many points, at each of which one argument is not zero.

    singly(f, ...)(x, y) = [f(x, 0), f(0, y)]

All points share one program. Each operation is evaluated at the points whose argument
reaches it, side by side; where two values meet, each has its value at zero, computed
once, at the points that reach only the other. So a point costs what is downstream of its
argument, and the program is as large as that of one point. Points are widened to whole
groups of neighbours: equal layers then have few numbers of points, and compile few times.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from bpfree.program import rewriting, tags
from bpfree.program.pieces import pieces
from bpfree.program.side_by_side import side_by_side

_GROUPS = 16  # each sixteenth of the points more costs a thirty-second of their passes

Numbers = tuple[int, ...]
"""Which arguments reach a value, ascending."""


def singly(
    fn: Callable[..., jax.Array], zeros: Sequence[jax.Array], linear: bool = False
) -> Callable[..., list[jax.Array]]:
    """`(*points) -> [fn at the points of each argument]`, samples in front of all.

    Args:
      fn: of as many arrays as there are `zeros`, without effects. What no argument
        reaches, and what is needed of `fn` at zero, is computed here.
      linear: it is zero at zero.
    """
    jaxpr, consts = tags.open_jaxpr(jax.make_jaxpr(fn)(*zeros))
    reach = _reach(jaxpr)
    (out,), every = jaxpr.outvars, tuple(range(len(zeros)))
    still = _still(jaxpr, reach, every)
    found = {v: tags.zeros(v.aval) for v in still if linear and v in reach}
    rest = found | _at_zero(jaxpr, consts, zeros, [v for v in still if v not in found])

    def run(*points):
        rows: dict[Any, jax.Array] = {}
        rewriting.assign(rows, jaxpr.invars, points)

        def at(v, wanted: Numbers):
            have = reach.get(v, ())
            if have == wanted:
                return rows[v]
            return _joined(rows.get(v), rest.get(v), have, wanted, len(points[0]))

        for eqn in jaxpr.eqns:
            wanted = reach.get(eqn.outvars[0], ())
            if wanted:
                moved = [not isinstance(v, Literal) and v in reach for v in eqn.invars]
                pairs = list(zip(eqn.invars, moved, strict=True))
                plain = partial(rewriting.lookup, rest)
                ins = [at(v, wanted) if m else plain(v) for v, m in pairs]
                rewriting.assign(rows, eqn.outvars, _bind(eqn, ins, moved))
        rows_of = np.split(np.arange(len(every) * len(points[0])), len(every))
        return pieces(at(out, every), rows_of, 0)

    return run


def _bind(eqn, ins, moved: list[bool]) -> list[jax.Array]:
    """The results of an equation, with an axis in front that the moved operands have."""
    pairs = list(zip(moved, ins, strict=True))

    def one(*row):
        given = iter(row)
        return tags.bind_eqn(eqn, [next(given) if m else x for m, x in pairs])

    return side_by_side(one)(*[x for m, x in pairs if m])


def _reach(jaxpr) -> dict[Any, Numbers]:
    """For each variable that arguments reach, the groups of these, or its own number."""
    reach: dict[Any, Numbers] = {v: (i,) for i, v in enumerate(jaxpr.invars)}
    every, size = range(len(reach)), -(-len(reach) // _GROUPS)
    for eqn in jaxpr.eqns:
        found = {i // size for v in _variables(eqn.invars) for i in reach.get(v, ())}
        if found:
            wide = tuple(i for i in every if i // size in found)
            reach |= dict.fromkeys(eqn.outvars, wide)
    return reach


def _still(jaxpr, reach, every: Numbers) -> list[Any]:
    """The variables whose value at zero is read where an argument reaches."""
    found = [v for v in jaxpr.outvars if reach.get(v) != every]
    for eqn in jaxpr.eqns:
        if wanted := reach.get(eqn.outvars[0]):
            found += [v for v in _variables(eqn.invars) if reach.get(v) != wanted]
    return list(dict.fromkeys(found))


def _at_zero(jaxpr, consts, zeros, wanted) -> dict[Any, jax.Array]:
    part = jaxpr.replace(outvars=wanted)
    part, used = tags.dce(part, [True] * len(wanted))
    args = [zero for zero, kept in zip(zeros, used, strict=True) if kept]
    values = rewriting.replay(part, consts, args, tags.bind_eqn)
    return dict(zip(wanted, values, strict=True))


def _joined(rows, rest, have: Numbers, wanted: Numbers, samples: int):
    """Rows at all points wanted; the value at zero at those that do not reach it."""
    parts, taken = [], 0
    for mine, run in groupby(wanted, have.__contains__):
        count = samples * len(list(run))
        if mine:
            parts.append(rows[taken : taken + count])
            taken += count
        else:
            parts.append(jnp.broadcast_to(rest, (count, *rest.shape)))
    return jnp.concatenate(parts)


def _variables(atoms) -> list[Any]:
    return [v for v in atoms if not isinstance(v, Literal)]
