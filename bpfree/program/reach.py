"""What a program's outputs depend on, and through which products: marks followed."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import jax
from jax.extend import core as jcore

from bpfree.program import foreign, tags
from bpfree.program.trace import split_aux
from bpfree.program.weights import PRODUCTS

# Depends on a chosen input; on the batch; on a chosen input through a product.
DERIVED, DATA, AFTER = 1, 2, 4
_LEAF = 8  # and from here on one bit for each leaf of params, in `moves_loss`


def moves_loss(jaxpr, out_tree, n: int) -> list[bool]:
    """Whether the losses of a traced loss function depend on each of n leaves of params.

    Not through `stop_gradient`, by which a parameter is frozen.
    """
    leaf = [_LEAF << i for i in range(n)]
    outputs, _ = reach(jaxpr, leaf + [0] * (len(jaxpr.invars) - n))
    tree = jax.tree.unflatten(out_tree, outputs)
    reached = reduce(or_, jax.tree.leaves(split_aux(tree)[0]), 0)
    return [bool(reached & mark) for mark in leaf]


def reach(jaxpr, marks: Sequence[int], seen=None) -> tuple[list[int], list[bool]]:
    """Follow marks from the inputs to the outputs of a jaxpr; constants count as DATA.

    Returns the marks of the outputs and, for every product of a DERIVED value, whether it
    carries a signal further: its other factor does not depend on DATA (a weight), or the
    value is AFTER a product already. A loop body's products count once. `stop_gradient`
    ends DERIVED. An equation we cannot look into reaches all it returns and, if DERIVED,
    counts as one product that carries. The marks of all variables come into `seen`.
    """
    mark: dict[Any, int] = {} if seen is None else seen
    mark.update(zip(jaxpr.invars, marks, strict=True))
    mark.update(dict.fromkeys(jaxpr.constvars, DATA))
    products: list[bool] = []
    for eqn in jaxpr.eqns:
        ins = [_mark_of(mark, v) for v in eqn.invars]
        outs, found = _reach_eqn(eqn, ins)
        products += found
        mark.update(zip(eqn.outvars, outs, strict=True))
    return [_mark_of(mark, v) for v in jaxpr.outvars], products


def _mark_of(mark: dict[Any, int], v) -> int:
    """Literals and arrays without entries depend on nothing."""
    return 0 if isinstance(v, jcore.Literal) or 0 in v.aval.shape else mark.get(v, 0)


def _reach_eqn(eqn, ins: list[int]) -> tuple[list[int], list[bool]]:
    name = eqn.primitive.name
    union = reduce(or_, ins, 0)
    if name in tags.INLINED or name in tags.REMAT:
        return reach(tags.body_of(eqn)[0], ins)
    if name == "scan":
        return _reach_scan(eqn, ins)
    if name == "cond":
        return _reach_branches(eqn, ins)
    if name == "stop_gradient":
        union &= DATA | AFTER
    found = []
    if not union & DATA:  # among parameters alone
        return [union] * len(eqn.outvars), []
    if union & DERIVED and name in PRODUCTS:
        value, other = ins if ins[0] & DERIVED else ins[1::-1]
        found = [not other & DATA or bool(value & AFTER)]
    elif union & DERIVED:
        own_rule = foreign.has_own_rule(eqn.primitive)
        found = [True] if own_rule or tags.sub_jaxprs(eqn) else []
    return [union | (AFTER if found else 0)] * len(eqn.outvars), found


def _reach_branches(eqn, ins: list[int]) -> tuple[list[int], list[bool]]:
    """Either branch may run: all marks, and the products of both."""
    chosen, *operands = ins
    outs, products = [chosen] * len(eqn.outvars), []
    for branch in tags.sub_jaxprs(eqn):
        ends, found = reach(branch, operands)
        outs = [a | b for a, b in zip(outs, ends, strict=True)]
        products += found
    return outs, products


def _reach_scan(eqn, ins: list[int]) -> tuple[list[int], list[bool]]:
    outs, products = reach(tags.body_of(eqn)[0], ins)
    consts, carry, xs = tags.split_scan(eqn.params, ins)
    looped = [a | b for a, b in zip(carry, outs[: len(carry)], strict=True)]
    if looped == list(carry):
        return outs, products
    return _reach_scan(eqn, [*consts, *looped, *xs])
