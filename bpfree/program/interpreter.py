"""The interpreter of programs with tags.

`run` evaluates a jaxpr and lets `visit` replace the value at each tag; it descends
into `jit`, `remat` and `scan`, where tagged values gain a leading time axis.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jcore

from bpfree.program.tags import (
    INLINED,
    Site,
    bind_eqn,
    body_of,
    find_sites,
    has_tags,
    open_jaxpr,
    split_scan,
    sub_jaxprs,
    tag_p,
)

Known = dict[tuple[int, ...], list[Any]]
"""Values of equations, by their place in the program."""


Visit = Callable[[Site, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]
"""visit(site, y, deltas) -> (value after the tag, {name: what to hand out})."""


def plain_scan(body, consts, carry, xs, **options):
    """`lax.scan` of `body(consts, carry, x)`."""
    return lax.scan(lambda c, x: body(consts, c, x), carry, xs, **options)


Bind = Callable[[Any, list[Any]], list[Any]]
"""bind(eqn, inputs) -> outputs."""


class Run(NamedTuple):
    """One evaluation: what to do at tags, and values already known from `prefix`.

    `scan` evaluates loops with tags inside, `inner_scan` those within a loop or remat;
    the arguments are those of `plain_scan`. `bind` evaluates all else.
    """

    visit: Visit
    known: Known = {}
    scan: Callable[..., tuple[Any, Any]] = plain_scan
    inner_scan: Callable[..., tuple[Any, Any]] = plain_scan
    bind: Bind = bind_eqn


def run(
    spec: Run, jaxpr, consts, args, sites: Sequence[Site], deltas, path=()
) -> tuple[list[Any], dict[str, Any]]:
    """Evaluate `jaxpr`, calling `spec.visit` at each of its tags.

    Returns the outputs and what the visits handed out; inside `scan` both the handed
    out values and `deltas` carry a leading time axis.
    """
    env: dict[Any, Any] = {}
    taps: dict[str, Any] = {}
    upcoming = iter(sites)
    assign(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    for i, eqn in enumerate(jaxpr.eqns):
        here = (*path, i)
        inner = _take(upcoming, eqn)
        if here in spec.known:
            assign(env, eqn.outvars, spec.known[here])
            continue
        invals = [lookup(env, v) for v in eqn.invars]
        if eqn.primitive is tag_p:
            value, out = spec.visit(inner[0], invals[0], deltas)
            outvals = [value]
        elif inner:
            outvals, out = _run_inner(spec, eqn, invals, inner, deltas, here)
        else:
            outvals, out = spec.bind(eqn, invals), {}
        taps.update(out)
        assign(env, eqn.outvars, outvals)
    return [lookup(env, v) for v in jaxpr.outvars], taps


def prefix(jaxpr, consts, args, sites, moved: Callable[[Site], bool]) -> Known:
    """Values of all equations that no moved tag, and no effect, can reach.

    The result is `Run.known` for evaluations that differ only downstream of the moved
    tags: what they share is computed once. Loops are either wholly shared or not at all.
    """
    known: Known = {}

    def unknown(values):
        return any(v is _UNKNOWN for v in values)

    def walk(jaxpr, consts, args, sites, path):
        env = {}
        upcoming = iter(sites)
        assign(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
        for i, eqn in enumerate(jaxpr.eqns):
            here = (*path, i)
            inner = _take(upcoming, eqn)
            invals = [lookup(env, v) for v in eqn.invars]
            if eqn.primitive is tag_p:
                outvals = [_UNKNOWN if moved(inner[0]) else invals[0]]
            elif inner and eqn.primitive.name in INLINED:
                outvals = walk(*body_of(eqn), invals, inner, here)
            elif unknown(invals) or any(map(moved, inner)) or eqn.effects:
                outvals = [_UNKNOWN] * len(eqn.outvars)
            else:
                outvals = bind_eqn(eqn, invals)
            if not unknown(outvals) and not eqn.effects:
                known[here] = outvals
            assign(env, eqn.outvars, outvals)
        return [lookup(env, v) for v in jaxpr.outvars]

    walk(jaxpr, consts, args, sites, ())
    return known


def downstream(jaxpr, sites: Sequence[Site], moved: Callable[[Site], bool]) -> set[int]:
    """`id` of the equations that a moved tag reaches, loops as wholes.

    Holds and statistics of the batch stop it.
    """
    found: set[int] = set()

    def walk(jaxpr, inputs, sites):
        env: dict[Any, bool] = {}
        upcoming = iter(sites)
        assign(env, [*jaxpr.constvars, *jaxpr.invars], inputs)
        for eqn in jaxpr.eqns:
            inner = _take(upcoming, eqn)
            invals = [not isinstance(v, jcore.Literal) and env[v] for v in eqn.invars]
            reached = [any(invals) or any(map(moved, inner))] * len(eqn.outvars)
            if eqn.primitive is tag_p:
                stops = inner[0].kind in ("hold", "statistic")
                reached = [moved(inner[0]) or (invals[0] and not stops)]
            elif inner and eqn.primitive.name in INLINED:
                body, consts = body_of(eqn)
                reached = walk(body, [False] * len(consts) + invals, inner)
            found.update([id(eqn)] if any(reached) else [])
            assign(env, eqn.outvars, reached)
        return [not isinstance(v, jcore.Literal) and env[v] for v in jaxpr.outvars]

    walk(jaxpr, [False] * (len(jaxpr.constvars) + len(jaxpr.invars)), sites)
    return found


_UNKNOWN = object()


def hoist(fn: Callable[..., Any], *shapes) -> Callable[..., Any]:
    """`fn` with all that does not depend on its arguments computed once, here.

    Args:
      shapes: arguments of `fn`, or ShapeDtypeStructs of them.
    """
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*shapes)
    jaxpr, consts = open_jaxpr(closed)
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
    count = sum(len(find_sites(j)) for j in sub_jaxprs(eqn) if has_tags(j))
    return list(islice(upcoming, count))


def lookup(env, var):
    return var.val if isinstance(var, jcore.Literal) else env[var]


def assign(env, variables, values):
    env.update(zip(variables, values, strict=True))


def replay(jaxpr, consts, args, bind: Bind) -> list[Any]:
    """Evaluate a jaxpr with `bind(eqn, inputs)` for each equation, jit inlined."""
    env: dict[Any, Any] = {}
    assign(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    for eqn in jaxpr.eqns:
        invals = [lookup(env, v) for v in eqn.invars]
        with _named(eqn):
            if eqn.primitive.name in INLINED:
                outvals = replay(*body_of(eqn), invals, bind)
            else:
                outvals = bind(eqn, invals)
        assign(env, eqn.outvars, outvals)
    return [lookup(env, v) for v in jaxpr.outvars]


def _named(eqn):
    """The names under which an equation was traced, for readers of compiled programs."""
    names = str(eqn.source_info.name_stack)
    return jax.named_scope(names) if names else contextlib.nullcontext()


def _run_inner(spec, eqn, invals, sites, deltas, path):
    mine = {s.name: deltas[s.name] for s in sites if s.name in deltas}
    if eqn.primitive.name == "cond":
        return _run_branches(spec._replace(known={}), eqn, invals, sites, mine)
    jaxpr, consts = body_of(eqn)
    if eqn.primitive.name in INLINED:
        return run(spec, jaxpr, consts, invals, sites, mine, path)
    fresh = spec._replace(known={}, scan=spec.inner_scan)
    if eqn.primitive.name == "scan":
        return _run_scan(fresh, spec.scan, eqn, invals, sites, mine)
    options = {k: eqn.params[k] for k in ("policy", "prevent_cse")}

    def body(invals, deltas):
        return run(fresh, jaxpr, consts, invals, sites, deltas)

    return jax.checkpoint(body, **options)(invals, mine)


def _run_branches(spec, eqn, invals, sites, deltas):
    """One branch; those that are not taken hand out `absent` values.

    All loops around the marks are around the branches, too.
    """
    upcoming = iter(sites)
    nothing = {s.name: absent(s.shape[s.steps :], s.dtype) for s in sites}

    def branch(closed):
        jaxpr, consts = open_jaxpr(closed)
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
    return jnp.full(shape, jnp.finfo(dtype).max, dtype)


def held(clean: jax.Array, y: jax.Array) -> jax.Array:
    """The value of the clean pass, or y where that took another branch."""
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return clean
    return jnp.where(clean == jnp.finfo(y.dtype).max, y, clean)


def replay_inside(eqn, invals, bind: Bind) -> list[Any]:
    """A scan, cond or remat equation whose bodies are replayed."""

    def evaluate(jaxpr, consts, args, branch: int = 0):
        del branch
        return replay(jaxpr, consts, args, bind)

    return reopened(eqn, invals, evaluate)


def reopened(eqn, invals, evaluate: Callable[..., list[Any]]) -> list[Any]:
    """A scan, remat or cond equation with `evaluate(jaxpr, consts, args)` of its body.

    Of a cond it is `evaluate(jaxpr, consts, args, number of the branch)`.
    """
    if eqn.primitive.name == "cond":

        def branch(k, closed):
            return lambda args: evaluate(*open_jaxpr(closed), args, k)

        branches = [branch(k, closed) for k, closed in enumerate(eqn.params["branches"])]
        return lax.switch(invals[0], branches, invals[1:])
    if eqn.primitive.name == "scan":

        def body(jaxpr, consts, args, deltas):
            return evaluate(jaxpr, consts, args), deltas

        return _scanned(plain_scan, eqn, invals, {}, body)[0]
    jaxpr, consts = body_of(eqn)
    options = {k: eqn.params[k] for k in ("policy", "prevent_cse")}
    return jax.checkpoint(lambda args: evaluate(jaxpr, consts, args), **options)(invals)


def _run_scan(spec, scan, eqn, invals, sites, deltas):
    def body(jaxpr, consts, args, deltas):
        return run(spec, jaxpr, consts, args, sites, deltas)

    scan = plain_scan if eqn.effects else scan
    return _scanned(scan, eqn, invals, deltas, body)


def _scanned(scan, eqn, invals, deltas, evaluate):
    """A scan equation with `evaluate(jaxpr, consts, args, deltas) -> (outs, taps)`."""
    jaxpr, closed = body_of(eqn)
    consts, carry, xs = split_scan(eqn.params, invals)

    def body(consts, carry, xs_and_deltas):
        closed, consts = consts
        xs, deltas = xs_and_deltas
        outs, taps = evaluate(jaxpr, closed, [*consts, *carry, *xs], deltas)
        return outs[: len(carry)], (outs[len(carry) :], taps)

    options = {k: eqn.params[k] for k in ("length", "reverse", "unroll")}
    carry, (ys, taps) = scan(
        body, (list(closed), list(consts)), list(carry), (list(xs), deltas), **options
    )
    return [*carry, *ys], taps
