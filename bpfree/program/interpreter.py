"""The interpreter of programs with tags.

`run` evaluates a jaxpr and lets `visit` replace the value at each tag; it descends
into `jit`, `remat` and `scan`, where tagged values gain a leading time axis.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.program import rewriting, tags
from bpfree.program.rewriting import plain_scan
from bpfree.program.tags import INLINED, Site, bind_eqn, body_of, find_sites, tag_p

Known = dict[tuple[int, ...], list[Any]]
"""Values of equations, by their place in the program."""


Visit = Callable[[Site, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""visit(site, y, deltas) -> (value after the tag, {name: what to hand out})."""


class Run(NamedTuple):
    """One evaluation: what to do at tags, and values already known from `prefix`.

    `scan` evaluates loops with tags inside, `inner_scan` those within a loop or remat;
    the arguments are those of `rewriting.plain_scan`. `bind` evaluates all else.
    """

    visit: Visit
    known: Known = {}
    scan: Callable[..., tuple[Any, Any]] = plain_scan
    inner_scan: Callable[..., tuple[Any, Any]] = plain_scan
    bind: rewriting.Bind = bind_eqn


def run(
    spec: Run, jaxpr, consts, args, sites: Sequence[Site], deltas, path=()
) -> tuple[list[Any], dict[str, Any]]:
    """Evaluate `jaxpr`, calling `spec.visit` at each of its tags.

    Returns the outputs and what the visits handed out; inside `scan` both the handed
    out values and `deltas` carry a leading time axis.
    """
    taps: dict[str, Any] = {}
    upcoming = iter(sites)

    def each(i, eqn, invals):
        here = (*path, i)
        inner = _take(upcoming, eqn)
        if here in spec.known:
            return spec.known[here]
        if eqn.primitive is tag_p:
            value, out = spec.visit(inner[0], invals[0], deltas)
            outvals = [value]
        elif inner:
            outvals, out = _run_inner(spec, eqn, invals, inner, deltas, here)
        else:
            outvals, out = spec.bind(eqn, invals), {}
        taps.update(out)
        return outvals

    return rewriting.walk(jaxpr, consts, args, each), taps


_UNKNOWN = object()


def _unknown(values) -> bool:
    return any(v is _UNKNOWN for v in values)


def prefix(jaxpr, consts, args, sites, moved: Callable[[Site], bool]) -> Known:
    """Values of all equations that no moved tag, and no effect, can reach.

    The result is `Run.known` for evaluations that differ only downstream of the moved
    tags: what they share is computed once. Loops are either wholly shared or not at all.
    """
    known: Known = {}

    def look(jaxpr, consts, args, sites, path):
        upcoming = iter(sites)

        def each(i, eqn, invals):
            here = (*path, i)
            inner = _take(upcoming, eqn)
            if eqn.primitive is tag_p:
                outvals = [_UNKNOWN if moved(inner[0]) else invals[0]]
            elif inner and eqn.primitive.name in INLINED:
                outvals = look(*body_of(eqn), invals, inner, here)
            elif _unknown(invals) or any(map(moved, inner)) or eqn.effects:
                outvals = [_UNKNOWN] * len(eqn.outvars)
            else:
                outvals = bind_eqn(eqn, invals)
            if not _unknown(outvals) and not eqn.effects:
                known[here] = outvals
            return outvals

        return rewriting.walk(jaxpr, consts, args, each)

    look(jaxpr, consts, args, sites, ())
    return known


def downstream(jaxpr, sites: Sequence[Site], moved: Callable[[Site], bool]) -> set[int]:
    """`id` of the equations that a moved tag reaches, loops as wholes.

    Holds and statistics of the batch stop it.
    """
    found: set[int] = set()

    def look(jaxpr, args, sites):
        upcoming = iter(sites)

        def each(i, eqn, invals):
            inner = _take(upcoming, eqn)
            reached = _unknown(invals) or any(map(moved, inner))
            if eqn.primitive is tag_p:
                stops = inner[0].kind in ("hold", "statistic")
                reached = moved(inner[0]) or (_unknown(invals) and not stops)
            outvals = [_UNKNOWN if reached else None] * len(eqn.outvars)
            if inner and eqn.primitive.name in INLINED:
                outvals = look(body_of(eqn)[0], invals, inner)
            found.update([id(eqn)] if _unknown(outvals) else [])
            return outvals

        return rewriting.walk(jaxpr, [None] * len(jaxpr.constvars), args, each)

    look(jaxpr, [None] * len(jaxpr.invars), sites)
    return found


def hoist(fn: Callable[..., Any], *shapes) -> Callable[..., Any]:
    """`fn` with all that does not depend on its arguments computed once, here.

    Args:
      shapes: arguments of `fn`, or ShapeDtypeStructs of them.
    """
    jaxpr, consts, out = rewriting.to_jaxpr(fn, shapes)
    inputs = [_UNKNOWN] * len(jaxpr.invars)
    spec = Run(_no_visit, prefix(jaxpr, consts, inputs, (), lambda site: False))

    def hoisted(*args):
        outs, _ = run(spec, jaxpr, consts, jax.tree.leaves(args), (), {})
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return hoisted


def _no_visit(site, y, deltas):
    raise AssertionError(f"mark {site.name!r} in a program that had none")


def _take(upcoming: Iterator[Site], eqn) -> list[Site]:
    if eqn.primitive is tag_p:
        return [next(upcoming)]
    inner = filter(tags.has_tags, tags.sub_jaxprs(eqn))
    return list(islice(upcoming, sum(len(find_sites(j)) for j in inner)))


def _run_inner(spec, eqn, invals, sites, deltas, path):
    mine = {s.name: deltas[s.name] for s in sites if s.name in deltas}
    if eqn.primitive.name == "cond":
        return _run_branches(spec._replace(known={}), eqn, invals, sites, mine)
    jaxpr, consts = body_of(eqn)
    if eqn.primitive.name in INLINED:
        return run(spec, jaxpr, consts, invals, sites, mine, path)
    fresh = spec._replace(known={}, scan=spec.inner_scan)

    def body(jaxpr, consts, args, deltas):
        return run(fresh, jaxpr, consts, args, sites, deltas)

    if eqn.primitive.name == "scan":
        scan = plain_scan if eqn.effects else spec.scan
        return rewriting.scanned(scan, eqn, invals, mine, body)
    options = {k: eqn.params[k] for k in ("policy", "prevent_cse")}
    again = jax.checkpoint(lambda args, ds: body(jaxpr, consts, args, ds), **options)
    return again(invals, mine)


def _run_branches(spec, eqn, invals, sites, deltas):
    """One branch; those that are not taken hand out `absent` values.

    All loops around the marks are around the branches, too.
    """
    upcoming = iter(sites)
    nothing = {s.name: absent(s.shape[s.steps :], s.dtype) for s in sites}

    def branch(closed):
        jaxpr, consts = tags.open_jaxpr(closed)
        mine = list(islice(upcoming, len(find_sites(jaxpr))))

        def taken(args, deltas):
            outs, taps = run(spec, jaxpr, consts, args, mine, deltas)
            return outs, {name: taps.get(name, y) for name, y in nothing.items()}

        return taken

    branches = [branch(closed) for closed in eqn.params["branches"]]
    outs, taps = lax.switch(invals[0], branches, invals[1:], deltas)
    return outs, {name: y for name, y in taps.items() if name not in deltas}


def absent(shape, dtype) -> jax.Array:
    """What stands for the value of a mark in a branch that was not taken."""
    return jnp.full(shape, _largest(dtype), dtype)


def held(clean: jax.Array, y: jax.Array) -> jax.Array:
    """The value of the clean pass, or y where that took another branch."""
    if y.dtype == bool:  # no value is left to say so
        return clean
    return jnp.where(clean == _largest(y.dtype), y, clean)


def _largest(dtype):
    if jnp.issubdtype(dtype, jnp.bool):
        return True
    info = jnp.finfo if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo
    return info(dtype).max
