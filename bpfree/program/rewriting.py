"""Jaxprs evaluated again, equation by equation, some of them in another way."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core as jcore

from bpfree.program import tags

Bind = Callable[[Any, list[Any]], list[Any]]
"""bind(eqn, inputs) -> outputs."""

Opens = Callable[[Any, list[Any]], bool]
"""Whether a call (eqn, inputs) is looked into; others stay functions of the program."""


def to_jaxpr(fn: Callable[..., Any], args) -> tuple[Any, Sequence[Any], Any]:
    """(jaxpr of `fn(*args)`, its constants, shapes of the output)."""
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    return *tags.open_jaxpr(closed), out


def evaluator(traced: tuple[Any, Sequence[Any], Any]) -> Callable[..., Any]:
    """The function of `to_jaxpr(fn, args)`; its Python code does not run again."""
    jaxpr, consts, out = traced

    def run(*args):
        outs = replay(jaxpr, consts, jax.tree.leaves(args), tags.bind_eqn, never)
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return run


def reads(fn: Callable[..., Any], *args) -> list[bool]:
    """Whether the results of `fn(*args)` depend on each of the leaves of `args`."""
    jaxpr, _, _ = to_jaxpr(fn, args)
    return tags.dce(jaxpr, [True] * len(jaxpr.outvars))[1]


def walk(jaxpr, consts, args, each: Callable[[int, Any, list[Any]], list[Any]]):
    """The outputs of a jaxpr with `each(i, eqn, inputs)` for those of its equations."""
    env: dict[Any, Any] = {}
    assign(env, [*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
    for i, eqn in enumerate(jaxpr.eqns):
        invals = [lookup(env, v) for v in eqn.invars]
        assign(env, eqn.outvars, each(i, eqn, invals))
    return [lookup(env, v) for v in jaxpr.outvars]


def lookup(env, var):
    return var.val if isinstance(var, jcore.Literal) else env[var]


def assign(env, variables, values):
    env.update(zip(variables, values, strict=True))


def every(eqn, invals) -> bool:
    return True


def never(eqn, invals) -> bool:
    return False


def replay(jaxpr, consts, args, bind: Bind, opens: Opens = every) -> list[Any]:
    """Evaluate a jaxpr with `bind(eqn, inputs)` for each equation, also those in jit."""

    def each(i, eqn, invals):
        with named(eqn):
            if eqn.primitive.name not in tags.INLINED:
                return bind(eqn, invals)
            if opens(eqn, invals):
                return replay(*tags.body_of(eqn), invals, bind, opens)
            return tags.bind_eqn(eqn, invals)

    return walk(jaxpr, consts, args, each)


def named(eqn):
    """The names under which an equation was traced, for readers of compiled programs."""
    names = str(eqn.source_info.name_stack)
    return jax.named_scope(names) if names else contextlib.nullcontext()


def holding(wanted: Callable[[Any], bool]) -> Opens:
    """Opens the calls in which there is such a primitive."""
    return lambda eqn, invals: tags.contains(tags.body_of(eqn)[0], wanted)


def rewritten(fn: Callable[..., Any], bind: Bind, opens: Opens = every):
    """`fn` with its equations bound by `bind(eqn, inputs)`."""
    return lambda *args: traced(fn, args, bind, opens)[0](*args)


def traced(fn: Callable[..., Any], shapes, bind: Bind, opens: Opens = every):
    """(`rewritten(fn, bind, opens)` for arguments of these shapes, its results' shapes).

    `fn` is traced here, once, whatever it is called with.
    """
    jaxpr, consts, out = to_jaxpr(fn, shapes)
    jaxpr = tags.pruned(jaxpr)

    def run(*args):
        outs = replay(jaxpr, consts, jax.tree.leaves(args), bind, opens)
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return run, out


# ----------------------------------------------------------------- equations with bodies


def replay_inside(eqn, invals, bind: Bind) -> list[Any]:
    """A scan, cond or remat equation whose bodies are replayed."""

    def evaluate(jaxpr, consts, args, branch: int = 0):
        del branch
        return replay(jaxpr, consts, args, bind)

    return reopened(eqn, invals, evaluate)


def bind_inside(eqn, invals, bind: Bind, wanted: Callable[[Any], bool]) -> list[Any]:
    """An equation as it stands, but for the jaxprs in it that are `wanted`."""
    name = eqn.primitive.name
    if not any(map(wanted, tags.sub_jaxprs(eqn))):
        return tags.bind_eqn(eqn, invals)
    if name in tags.INLINED:
        return replay(*tags.body_of(eqn), invals, bind)
    if name == "scan" or name == "cond" or name in tags.REMAT:
        return replay_inside(eqn, invals, bind)
    return tags.bind_eqn(eqn, invals)


def reopened(eqn, invals, evaluate: Callable[..., list[Any]]) -> list[Any]:
    """A scan, remat or cond equation with `evaluate(jaxpr, consts, args)` of its body.

    Of a cond it is `evaluate(jaxpr, consts, args, number of the branch)`.
    """
    if eqn.primitive.name == "cond":

        def branch(k, closed):
            return lambda args: evaluate(*tags.open_jaxpr(closed), args, k)

        branches = [branch(k, closed) for k, closed in enumerate(eqn.params["branches"])]
        return lax.switch(invals[0], branches, invals[1:])
    if eqn.primitive.name == "scan":

        def body(jaxpr, consts, args, deltas):
            return evaluate(jaxpr, consts, args), deltas

        return scanned(plain_scan, eqn, invals, {}, body)[0]
    jaxpr, consts = tags.body_of(eqn)
    options = {k: eqn.params[k] for k in ("policy", "prevent_cse")}
    return jax.checkpoint(lambda args: evaluate(jaxpr, consts, args), **options)(invals)


def plain_scan(body, consts, carry, xs, **options):
    """`lax.scan` of `body(consts, carry, x)`."""
    return lax.scan(lambda c, x: body(consts, c, x), carry, xs, **options)


def scanned(scan, eqn, invals, deltas, evaluate):
    """A scan equation with `evaluate(jaxpr, consts, args, deltas) -> (outs, taps)`.

    Args:
      scan: `plain_scan`, or a function like it.
      deltas: what the steps are given, one after the other, as the taps are stacked.
    """
    jaxpr, closed = tags.body_of(eqn)
    consts, carry, xs = tags.split_scan(eqn.params, invals)

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
