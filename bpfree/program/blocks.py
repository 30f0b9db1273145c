"""What is differentiated between the nodes: the answer to "is this backprop-free?".

A block is the code between a node and the nodes (and inputs) before it. An estimator
differentiates inside blocks only. This file reads, from the derivative of the cut
program, which parameters a block holds and which weight products its derivative contains.
"""

import warnings
from functools import partial, reduce
from operator import or_
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jcore

from bpfree.program import passes, rewriting, tags
from bpfree.program.marking import param_paths
from bpfree.program.reach import DATA, DERIVED, moves_loss, reach
from bpfree.program.trace import Program, split_aux
from bpfree.program.weights import PRODUCTS, STEPS

_LOSS = "(loss)"  # the block after the last node


class Block(NamedTuple):
    """One block.

    Attributes:
      name: of the node that ends it; "(loss)" for the block after the last node.
      params: paths of the parameters it holds.
      products: matrix products and convolutions in its derivative; a layer's own weight
        gradient is one. What stands in a loop counts once, and so does anything we cannot
        look into (`while`, custom derivatives).
      carried: those of them that carry an error signal further, which is what backprop
        does at every layer: through a weight, or after another product. Elementwise
        weights are no products and are not counted.
      noise: what noise at the node is drawn for. "example": each example has a draw, and
        answers for it with its loss; "batch": all examples share one; "weights": the node
        stands on the parameter itself (weight noise), which all share too; "none" at the
        loss.
    """

    name: str
    params: tuple[str, ...]
    products: int
    carried: int
    noise: Literal["example", "batch", "weights", "none"]


class Blocks(tuple[Block, ...]):
    """The blocks in program order; `print` shows them as a table."""

    def __str__(self) -> str:
        width = max(len(b.name) for b in self)
        lines = [f"{'block':<{width}}  noise    products  carried  parameters"]
        for b in self:
            counts = f"{b.noise:<7}  {b.products:>8}  {b.carried:>7}"
            lines.append(f"{b.name:<{width}}  {counts}  {', '.join(b.params) or '-'}")
        carried = sum(b.carried for b in self)
        lines.append(f"error signals carried through a weight: {carried}")
        return "\n".join(lines)


class BackpropagationWarning(UserWarning):
    """The user's own nodes leave a block that carries error signals through weights.

    `update` and `init` warn once they trace the loss function, unless `nodes=` names the
    nodes on purpose.

    Example:
        >>> def one_node(params, batch):
        ...     h = jnp.tanh(batch["x"] @ params["w1"])
        ...     return (bpfree.node(h @ params["w2"], "output") ** 2).sum(1)
        >>> import warnings
        >>> tx = bpfree.node_perturbation(one_node, num_samples=2)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     gradient, _ = tx.update(None, tx.init(params), params, batch=batch)
        >>> [w.category.__name__ for w in caught]
        ['BackpropagationWarning']
    """


def warn_of_backpropagation(found: Blocks, nodes: Any) -> None:
    """Warns of blocks that carry signals, unless `nodes` were chosen on purpose."""
    carrying = [block for block in found if block.carried]
    if nodes is not None or not carrying:
        return
    said = "; ".join(
        f"{b.name!r} with parameters {', '.join(b.params)}: {b.carried}" for b in carrying
    )
    warnings.warn(
        "blocks carry error signals backwards through a weight, as backpropagation does "
        f"(block: how many): {said}. Mark a bpfree.node at the output of each weight "
        "product, or none at all: then all are found. To keep it as it is, name the "
        "nodes with nodes=.",
        BackpropagationWarning,
        stacklevel=2,
    )


def check_blocks(program: Program, args, wanted=None) -> Blocks:
    """The blocks of a traced loss; raises ValueError where one cannot train.

    `wanted` says for each leaf of params whether its gradient is asked for (None: all).

    Refused: a node that does not depend on the batch but says that it has a batch axis; a
    node none of whose inputs has a derivative with respect to a parameter
    (because it follows a threshold, or another node directly), and a parameter that
    moves the loss but that no block differentiates. Parameters under
    `lax.stop_gradient` are taken as frozen on purpose.
    """
    leaf_paths = param_paths(args[0])
    jaxpr, names = _tangent_program(program, args)
    n = len(leaf_paths)
    marks: dict[Any, int] = {}
    data = [DATA] * (len(jaxpr.invars) - 2 * n)
    reach(jaxpr, [0] * n + [DERIVED] * n + data, marks)
    _check_batch_axes(program, jaxpr, marks)
    parts = _apart(jaxpr, marks, len(names))
    kinds = [*map(partial(_noise, jaxpr, marks), enumerate(program.nodes)), "none"]
    found = Blocks(map(partial(_block, leaf_paths, jaxpr, marks), names, kinds, parts))
    for block in found[:-1]:
        if not block.params:
            raise ValueError(
                f"node {block.name!r} ends a block in which no parameter has a "
                "derivative, so its signal is lost. Move the node in front of the "
                "threshold; or leave it out (nodes=) if no parameter stands "
                "between it and the node before, or its parameters are frozen."
            )
    trained = {path for block in found for path in block.params}
    moving = moves_loss(program.jaxpr, program.out_tree, len(leaf_paths))
    for i, path in enumerate(leaf_paths):
        asked = wanted is None or wanted[i]
        if asked and path not in trained and moving[i]:
            raise ValueError(
                f"parameter {path!r} moves the loss but no block has a derivative for "
                "it: mark a node between it and the threshold after it, or apply "
                "jax.lax.stop_gradient to it to say that it is frozen."
            )
    return found


def _tangent_program(program: Program, args) -> tuple[Any, list[str]]:
    """Jaxpr of (params, directions, *rest) -> (nodes, tangents of nodes and losses)."""
    order = [s.name for s in program.nodes]
    program = program._replace(bind=_opened)

    def tangents(params, directions, *rest):
        def cut(params):
            out, values = passes.cut(program, (params, *rest))
            return *(values[name] for name in order), split_aux(out)[0]

        values, moved = jax.jvp(cut, (params,), (directions,))
        return values[:-1], moved

    jaxpr, _ = tags.open_jaxpr(jax.make_jaxpr(tangents)(args[0], *args))
    return jaxpr, [*order, _LOSS]


def _opened(eqn, invals) -> list[Any]:
    """One equation; a `custom_vjp` around products as those products, to be counted.

    Its own rule cannot be looked into. Whole numbers and steps are left out, for what
    they have no derivative of may be what the rule is there for: no value is ever
    computed of this.
    """
    is_custom = tags.is_custom_vjp(eqn.primitive)
    inner = tags.sub_jaxprs(eqn) if is_custom else []
    if not any(tags.contains(j, lambda p: p.name in PRODUCTS) for j in inner):
        return tags.bind_eqn(eqn, invals)

    def smooth(eqn, invals):
        kind = eqn.outvars[0].aval.dtype
        if eqn.primitive.name in STEPS or eqn.primitive.name == "convert_element_type":
            return invals
        if eqn.primitive.name in PRODUCTS and jnp.issubdtype(kind, jnp.integer):
            eqn = eqn.replace(params=eqn.params | {"preferred_element_type": None})
        return _opened(eqn, invals)

    try:
        return rewriting.replay(*tags.body_of(eqn), invals, smooth)
    except TypeError:  # numbers that are whole for another reason
        return tags.bind_eqn(eqn, invals)


def _apart(tangents, marks, count: int) -> list[Any]:
    """For each of the last `count` outputs the jaxpr of what it needs that is linear.

    One walk from the end. Blocks have nothing in common but loops and calls, so that
    their sizes add up to that of the program, at any depth.
    """
    needed: dict[Any, int] = {}  # by which outputs, as the bits of a number
    parts: list[list[Any]] = [[] for _ in range(count)]
    for i, v in enumerate(tangents.outvars[-count:]):
        if not isinstance(v, jcore.Literal):
            needed[v] = needed.get(v, 0) | 1 << i
    for eqn in reversed(tangents.eqns):
        if not any(marks[v] & DERIVED for v in eqn.outvars):
            continue
        by = reduce(or_, (needed.get(v, 0) for v in eqn.outvars), 0)
        for v in eqn.invars if by else ():
            if not isinstance(v, jcore.Literal):
                needed[v] = needed.get(v, 0) | by
        while by:
            parts[by.bit_length() - 1].append(eqn)
            by -= 1 << by.bit_length() - 1
    outs = tangents.outvars[-count:]
    return [_ending(tangents, o, p[::-1]) for o, p in zip(outs, parts, strict=True)]


def _ending(jaxpr, out, eqns):
    """The jaxpr of some equations that end in `out`; what they read are its inputs."""
    atoms = [*(v for eqn in eqns for v in eqn.invars), out]
    read = dict.fromkeys(v for v in atoms if not isinstance(v, jcore.Literal))
    inside = {v for eqn in eqns for v in eqn.outvars}
    free = [v for v in read if v not in inside]
    return jaxpr.replace(constvars=[], invars=free, outvars=[out], eqns=eqns)


def _block(paths: list[str], tangents, marks, name: str, noise, part) -> Block:
    jaxpr, used = tags.dce(part, [True])
    read = [v for v, kept in zip(part.invars, used, strict=True) if kept]
    directions = tangents.invars[len(paths) : 2 * len(paths)]
    _, products = reach(jaxpr, [marks[v] for v in read])
    mine = tuple(p for p, v in zip(paths, directions, strict=True) if v in set(read))
    return Block(name, mine, len(products), sum(products), noise)


def _noise(tangents, marks, node) -> str:
    """What the noise of a node, an output of the tangent program, is drawn for."""
    number, site = node
    if site.batch_axis is not None:
        return "example"
    v = tangents.outvars[number]
    of_data = isinstance(v, jcore.Literal) or marks[v] & DATA
    return "batch" if of_data else "weights"


def _check_batch_axes(program: Program, tangents, marks) -> None:
    """A node with a batch axis that nothing of the batch reaches is shared by it."""
    if program.batch_size is None:
        return
    for site, v in zip(program.nodes, tangents.outvars, strict=False):
        reached = not isinstance(v, jcore.Literal) and marks[v] & DATA
        if site.batch_axis is not None and not reached:
            raise ValueError(
                f"node {site.name!r} does not depend on the batch, so its axis "
                f"{site.batch_axis} is no batch axis: pass batch_axis=None to "
                "bpfree.node, or leave it out (nodes=)."
            )
