"""Predictors of gradients, and the clean pass as they read it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpfree.estimators.adam import adam
from bpfree.program import passes, rewriting, tags, tangents
from bpfree.program.interpreter import Run
from bpfree.program.reach import AFTER, reach
from bpfree.program.tags import Site
from bpfree.program.trace import NodeTree, Program, split_aux


class Clean(NamedTuple):
    """A clean pass, as predictors see it.

    Attributes:
      program: the traced loss function, with its nodes.
      args: `(params, batch[, key])`.
      values: {node: its value}, and the values that are held.

    Example:
        >>> clean = bpfree.predictors.Clean(None, args=(params, batch), values={})
        >>> clean.values
        {}
    """

    program: Program
    args: tuple
    values: NodeTree


class Predictor(NamedTuple):
    """How to predict the gradient at the nodes; an argument of `bpfree.learned_feedback`.

    Attributes:
      init: `(key, clean) -> weights`, from the shapes of `clean`; consumes the key.
      predict: `(weights, clean) -> {node: dL_b/dy}`, shaped as the nodes; exact at the
        last node, where it is the loss's own derivative.
      respond: `(weights, clean, moves) -> {node: change of its value}` for small changes
        `moves` of the values at the nodes.
      dead: `clean -> names` of hidden nodes for which it has no derivative to work with.
      models: what `respond` is a model of. "blocks": how the values at all nodes move the
        ends of the blocks that read them. "rest": how noise at a node moves the last
        node, by all that lies between.
      fit: makes the optimiser that fits it to the nodes' changes, if none is given.

    Example:
        >>> bpfree.predictors.direct().models
        'rest'
    """

    init: Callable[[jax.Array, Clean], Any]
    predict: Callable[[Any, Clean], NodeTree]
    respond: Callable[[Any, Clean, NodeTree], NodeTree]
    dead: Callable[[Clean], list[str]]
    models: Literal["blocks", "rest"] = "blocks"
    # It must follow a model that learns.
    fit: Callable[[], optax.GradientTransformation] = partial(adam, 1e-2, b1=0.5, b2=0.99)


def run(program: Program, args) -> tuple[Clean, Any, Callable[[NodeTree], Any]]:
    """(the clean pass, the program's output, signals at the nodes -> gradient)."""
    out, values, pull = passes.cut_vjp(program, args)
    # Statistics of the batch are values like any other here.
    names = [s.name for s in program.sites if s.kind in ("node", "hold")]
    kept = {name: values[name] for name in names if name in values}
    return Clean(tangents.known(program), args, kept), out, pull


def feeds_back(clean: Clean) -> bool:
    """Whether any node's block reads the last node: in a loop, at a later step.

    The loss's own derivative is then not the whole gradient at the last node.
    """

    def ends(args, values):
        return ends_of_blocks(clean._replace(args=args), args[0], values)

    jaxpr, _, _ = rewriting.to_jaxpr(ends, (clean.args, clean.values))
    rest = len(jaxpr.invars) - len(clean.values)
    last = clean.program.nodes[-1].name
    marks = [0] * rest + [AFTER * (n == last) for n in sorted(clean.values)]
    return any(mark & AFTER for mark in reach(jaxpr, marks)[0])


def is_flat(clean: Clean) -> bool:
    """Whether the losses have no derivative at the last node."""
    last = clean.program.nodes[-1:]
    return bool(without_derivative(losses_of, clean, last))


def hidden(program: Program) -> tuple[Site, ...]:
    """All nodes but the last, whose gradient is the loss's own derivative."""
    return program.nodes[:-1]


@jax.custom_jvp
def _straight_through(value, y):
    """The value, with the derivatives of both."""
    return value


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[0], tangents[0] + tangents[1]


def losses_of(clean: Clean, values: NodeTree) -> jax.Array:
    """Losses of the block after the last node, with the model's own parameters."""
    (out, _) = _run(clean, clean.args[0], values, lambda site, value, y: None)
    return split_aux(out)[0]


def output_gradient(clean: Clean, values: NodeTree) -> NodeTree:
    def total(values):
        return losses_of(clean, values).sum()

    # What stands between the nodes is dropped before the rest is differentiated.
    after_last, _ = rewriting.traced(total, (values,), tags.bind_eqn, rewriting.never)
    return jax.grad(after_last)(values)


def ends_of_blocks(clean: Clean, params, values: NodeTree) -> NodeTree:
    """What each block makes of the values that stand at the nodes before it."""
    active = clean.program.active
    tap = lambda site, value, y: y if site.name in active else None  # noqa: E731
    return _run(clean, params, values, tap)[1]


def responses(params, clean: Clean, moves: NodeTree) -> NodeTree:
    """How each block's end moves with the values before it, at these parameters."""

    def ends(values):
        return ends_of_blocks(clean, params, values)

    directions = {**jax.tree.map(jnp.zeros_like, clean.values), **moves}
    return jax.jvp(ends, (clean.values,), (directions,))[1]


def kernel_inputs(clean: Clean, values: NodeTree) -> NodeTree:
    tap = lambda site, value, y: y if site.kind == "input" else None  # noqa: E731
    return _run(clean, clean.args[0], values, tap)[1]


def chain_of_blocks(clean: Clean, params, values: NodeTree) -> NodeTree:
    """The values again, each with the derivative of its block by the ones before."""
    active = clean.program.active
    tap = lambda site, value, y: value if site.name in active else None  # noqa: E731
    return {**values, **_run(clean, params, values, tap, _straight_through)[1]}


def _run(clean: Clean, params, values: NodeTree, tap, stand=lambda value, y: value):
    """(output, taps) with `stand(value, y)` at each node whose block gave y."""

    def visit(site, y, values):
        value = values.get(site.name, y)
        if site.kind == "hold":
            value = lax.stop_gradient(value)
        elif site.name in clean.program.active:
            value = stand(value, y)
        found = tap(site, value, y)
        return value, ({} if found is None else {site.name: found})

    args = (params, *clean.args[1:])
    return passes.evaluate(clean.program, Run(visit), args, values)


def without_derivative(fn, clean: Clean, sites) -> list[str]:
    """The sites by whose value no output of `fn(clean, values)` has a derivative.

    `clean` may hold shapes only.
    """

    def tangents(args, values, directions):
        here = clean._replace(args=args)
        return jax.jvp(lambda values: fn(here, values), (values,), (directions,))[1]

    used = rewriting.reads(tangents, clean.args, clean.values, clean.values)
    directions = used[len(used) - len(clean.values) :]
    moving = dict(zip(sorted(clean.values), directions, strict=True))
    return [site.name for site in sites if not moving[site.name]]
