"""Equal equations of a program, evaluated once.

Passes of one model over the same values (a clean pass, a prediction, the response of
each block) share much of their programs. XLA finds that out too, but only after JAX has
lowered all of it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core as jcore

from bpfree.program import rewriting, tags


def once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of pytrees of arrays, with equal equations of its program evaluated once.

    Equations are equal if their primitive, its parameters and their inputs are, and they
    have no effect. Bodies of loops and of called functions stay as they are.
    """

    def run(*args):
        jaxpr, consts, out = rewriting.to_jaxpr(fn, args)
        jaxpr = tags.pruned(jaxpr)
        found: dict[Any, list[Any]] = {}

        def bind(i, eqn, invals):
            inputs = tuple(map(_identity, eqn.invars, invals))
            options = tuple((k, _hashable(v)) for k, v in sorted(eqn.params.items()))
            same = (eqn.primitive, inputs, options, eqn.ctx)
            key = i if eqn.effects else same
            if key not in found:
                with rewriting.named(eqn):
                    found[key] = tags.bind_eqn(eqn, invals)
            return found[key]

        outs = rewriting.walk(jaxpr, consts, jax.tree.leaves(args), bind)
        return jax.tree.unflatten(jax.tree.structure(out), outs)

    return run


def _identity(var, value):
    """Numbers are equal by value; everything else is what it is."""
    if isinstance(var, jcore.Literal) and not var.aval.shape:
        return var.aval, repr(value)
    return id(value)


def _hashable(value):
    """Jaxprs, too, are what they are: JAX traces a function once for each shape."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
