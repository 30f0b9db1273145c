"""What is differentiated between the nodes: the answer to "is this backprop-free?".

A block is the code between a node and the nodes (and inputs) before it. An estimator
differentiates inside blocks only. This file reads, from the derivative of the cut
program, which parameters a block holds and which weight products its derivative contains.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

from bpfree import _jaxpr
from bpfree import program as _program

_PRODUCTS = {"dot_general", "conv_general_dilated"}
DERIVED, DATA = 1, 2  # depends on a chosen input; depends on the batch
_LOSS = "(loss)"  # the block behind the last node


class Block(NamedTuple):
    """One block.

    Attributes:
      name: of the node that ends it; "(loss)" for the block behind the last node.
      params: paths of the parameters it holds.
      products: matrix products and convolutions in its derivative; a layer's own weight
        gradient is one. What stands in a loop counts once.
      carried: those of them that carry an error signal through a weight, which is what
        backprop does at every layer. 0 means that the block's derivative is local.
    """

    name: str
    params: tuple[str, ...]
    products: int
    carried: int


class Blocks(tuple[Block, ...]):
    """The blocks in program order; `print` shows them as a table."""

    def __str__(self) -> str:
        width = max(len(b.name) for b in self)
        lines = [f"{'block':<{width}}  products  carried  parameters"]
        for b in self:
            params = ", ".join(b.params) or "-"
            lines.append(f"{b.name:<{width}}  {b.products:>8}  {b.carried:>7}  {params}")
        carried = sum(b.carried for b in self)
        lines.append(f"error signals carried through a weight: {carried}")
        return "\n".join(lines)


def check(program: _program.Program, args) -> Blocks:
    """The blocks of a traced loss; raises ValueError where one cannot train.

    Refused: a node none of whose inputs has a derivative with respect to a parameter
    (because it stands behind a threshold, or right behind another node), and a parameter
    that moves the loss but that no block differentiates. Parameters behind
    `lax.stop_gradient` are taken as frozen on purpose.
    """
    paths = _paths(args[0])
    tangents, names = _tangent_program(program, args)
    found = Blocks(_block(tangents, paths, names, i) for i in range(len(names)))
    for block in found[:-1]:
        if not block.params:
            raise ValueError(
                f"node {block.name!r} ends a block in which no parameter has a "
                "derivative, so its signal is lost. Move the node in front of the "
                "threshold; or leave it out (nodes=, where=) if no parameter stands "
                "between it and the node before, or its parameters are frozen."
            )
    trained = {path for block in found for path in block.params}
    for i, path in enumerate(paths):
        if path not in trained and _moves_loss(program, i):
            raise ValueError(
                f"parameter {path!r} moves the loss but no block has a derivative for "
                "it: mark a node between it and the threshold behind it, or apply "
                "jax.lax.stop_gradient to it to say that it is frozen."
            )
    return found


def _paths(params) -> list[str]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [param_path(p) for p, _ in leaves]
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if not jax.numpy.issubdtype(jax.numpy.result_type(leaf), jax.numpy.floating):
            raise ValueError(
                f"parameter {path!r} is {jax.numpy.result_type(leaf)}; parameters are "
                "real floating point. Keep other state in the batch or in a closure."
            )
    return paths


def param_path(path: tuple) -> str:
    """A leaf's key path in words, as adapters name kernels: "layer/kernel".

    Flax NNX wraps every array in a Variable, whose own key, `.value`, is left out.
    """
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _tangent_program(program: _program.Program, args) -> tuple[Any, list[str]]:
    """Jaxpr of (params, directions, *rest) -> tangents of the nodes and losses."""
    order = [s.name for s in program.nodes]

    def tangents(params, directions, *rest):
        def cut(params):
            out, values = _program.cut(program, (params, *rest))
            return *(values[name] for name in order), _program.split_aux(out)[0]

        return jax.jvp(cut, (params,), (directions,))[1]

    jaxpr, _ = _jaxpr.open_jaxpr(jax.make_jaxpr(tangents)(args[0], *args))
    return jaxpr, [*order, _LOSS]


def _block(tangents, paths: list[str], names: list[str], i: int) -> Block:
    jaxpr, used = _jaxpr.dce(tangents, [j == i for j in range(len(names))])
    n = len(paths)
    marks = [0] * n + [DERIVED] * n + [DATA] * (len(used) - 2 * n)
    _, partners = reach(jaxpr, [m for m, kept in zip(marks, used, strict=True) if kept])
    return Block(
        names[i],
        tuple(path for path, mine in zip(paths, used[n : 2 * n], strict=True) if mine),
        len(partners),
        sum(not mark & DATA for mark in partners),
    )


def _moves_loss(program: _program.Program, leaf: int) -> bool:
    marks = [DERIVED * (i == leaf) for i in range(len(program.jaxpr.invars))]
    outputs, _ = reach(program.jaxpr, marks)
    tree = jax.tree.unflatten(program.out_tree, outputs)
    losses = jax.tree.leaves(_program.split_aux(tree)[0])
    return any(mark & DERIVED for mark in losses)


# ------------------------------------------------------------------ following marks


def reach(jaxpr, marks: Sequence[int]) -> tuple[list[int], list[int]]:
    """Follow marks (DERIVED | DATA) from the inputs to the outputs of a jaxpr.

    Returns the marks of the outputs and, for every matrix product or convolution with one
    DERIVED operand, the mark of its other operand; a loop body's products count once.
    `stop_gradient` ends DERIVED. Whatever `cond`, `while` and custom derivatives read is
    taken to reach all they return.
    """
    mark = dict(zip(jaxpr.invars, marks, strict=True))
    partners: list[int] = []
    for eqn in jaxpr.eqns:
        ins = [0 if isinstance(v, Literal) else mark.get(v, 0) for v in eqn.invars]
        name = eqn.primitive.name
        union = reduce(or_, ins, 0)
        outs = [union & ~DERIVED if name == "stop_gradient" else union] * len(eqn.outvars)
        if union and (name in _jaxpr.INLINED or name in _jaxpr.REMAT or name == "scan"):
            outs, inside = _reach_inside(eqn, ins)
            partners += inside
        elif name in _PRODUCTS and union & DERIVED:
            partners.append(ins[1] if ins[0] & DERIVED else ins[0])
        mark.update(zip(eqn.outvars, outs, strict=True))
    ends = [0 if isinstance(v, Literal) else mark.get(v, 0) for v in jaxpr.outvars]
    return ends, partners


def _reach_inside(eqn, marks: list[int]) -> tuple[list[int], list[int]]:
    outs, partners = reach(_jaxpr.body_of(eqn)[0], marks)
    if eqn.primitive.name != "scan":
        return outs, partners
    consts, carry, xs = _jaxpr.split_scan(eqn.params, marks)
    looped = [a | b for a, b in zip(carry, outs[: len(carry)], strict=True)]
    if looped == list(carry):
        return outs, partners
    return _reach_inside(eqn, [*consts, *looped, *xs])
