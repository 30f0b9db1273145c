"""The ways to run a traced program: clean, cut at its nodes, pulled back, perturbed.

`bpfree.nodes` has the public transformations.
"""

from collections.abc import Callable, Collection
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.program import interpreter, loops, rewriting, tags
from bpfree.program.convolutions import inputs_first
from bpfree.program.interpreter import Run
from bpfree.program.partition import rows_merged
from bpfree.program.trace import NodeTree, Program, split_aux


def evaluate(program: Program, spec: Run, args, deltas: NodeTree | None = None):
    """(output of loss_fn, taps) of one interpretation of the program."""
    flat = jax.tree.leaves(args)
    given = {**program.held, **(deltas or {})}
    outs, taps = interpreter.run(
        spec._replace(bind=program.bind),
        program.jaxpr,
        program.consts,
        flat,
        program.sites,
        given,
    )
    out = jax.tree.unflatten(program.out_tree, outs)
    losses, aux = split_aux(out)
    for name in [n for n in taps if n in program.held and n.startswith(tags.SHARES)]:
        worth = taps.pop(name).reshape(-1, len(losses)).sum(0)  # in loops, over the steps
        losses = losses + worth.astype(losses.dtype)
    return ((losses, aux) if program.has_aux else losses), taps


def cut(program: Program, args, deltas: NodeTree | None = None):
    """(output of loss_fn, {node: y}) with no derivative across a node.

    In a clean pass the values of what noisy ones hold are handed out too. Loops are
    differentiated at all steps at once where the nodes cut one step from the next
    (`loops`).
    """
    visit = adding(program, lax.stop_gradient)
    spec = Run(visit, scan=loops.scan, inner_scan=loops.scan)
    return evaluate(program, spec, args, deltas)


def cut_vjp(program: Program, args):
    """One clean pass: `(output of loss_fn, {node or what is held: y}, pull)`.

    See `bpfree.pullback`.
    """
    differentiated = partial(_of_params, program, args)
    (losses, values), vjp, (out, held) = jax.vjp(differentiated, args[0], has_aux=True)
    vjp = inputs_first(vjp)

    def pull(signals: NodeTree):
        return vjp(_cotangents(losses, values, signals))[0]

    return out, values | held, pull


def cut_vjp_by_rows(program: Program, args, rows: int, spread: Callable):
    """`cut_vjp` whose signals have an axis of `rows` in front, which pull adds up.

    Every device pulls its row of the signals. A gradient is one sum over rows and batch:
    the transpose of a tangent map with rows of what it keeps of the clean pass. Blocks
    with a `custom_vjp` have no such map.

    Args:
      spread: `(function of a tree) -> the same with rows in front`, `loop.copies`.
    """
    differentiated = partial(_of_params, program, args)
    (losses, values), tangents, (out, held) = jax.linearize(
        differentiated, args[0], has_aux=True
    )
    jaxpr, kept = tags.open_jaxpr(jax.make_jaxpr(tangents)(args[0]))
    results = jax.tree.structure((losses, values))

    def by_rows(changes):
        def one(kept):
            leaves = jax.tree.leaves(changes)
            outs = rewriting.replay(jaxpr, kept, leaves, tags.bind_eqn)
            return jax.tree.unflatten(results, outs)

        return spread(one)(kept)

    transposed = jax.linear_transpose(by_rows, args[0])
    if program.batch_size:
        transposed = rows_merged(transposed, rows, program.batch_size)
    transposed = inputs_first(transposed)

    def pull(signals: NodeTree):
        of_row = partial(_cotangents, losses, values)
        after, given = jax.vmap(of_row, axis_size=rows)(signals)
        return transposed((after / rows, given))[0]

    return out, values | held, pull


def _of_params(program: Program, args, params):
    """((losses, values of nodes), (output of loss_fn, what noisy passes hold))."""
    out, values = cut(program, (params, *args[1:]))
    nodes = {name: values.pop(name) for name in list(values) if name in program.active}
    return (split_aux(out)[0], nodes), (out, values)


def _cotangents(losses, values: NodeTree, signals: NodeTree):
    """Of the mean loss after the last node, and of the nodes."""
    given = {
        name: signals[name].astype(y.dtype) if name in signals else jnp.zeros_like(y)
        for name, y in values.items()
    }
    return jnp.full_like(losses, 1 / max(losses.size, 1)), given


def perturbed(
    program: Program, args, moved: Collection[str] | None = None
) -> Callable[[NodeTree], jax.Array]:
    """`{node: delta} -> losses`, with all that no moved node reaches computed once, here.

    Args:
      moved: names of the nodes that may get a delta; default all.
    """
    run = observed(program, args, moved, tap=False)
    return lambda deltas: run(deltas)[0]


def observed(
    program: Program, args, moved: Collection[str] | None = None, tap: bool = True
) -> Callable[[NodeTree], tuple[jax.Array, NodeTree]]:
    """`{node: delta} -> (losses, {moved node: y})`; arguments as in `perturbed`.

    `y` is the value before the node's own delta, downstream of the others.
    """
    names = program.active if moved is None else frozenset(moved)
    known = interpreter.prefix(
        program.jaxpr,
        program.consts,
        jax.tree.leaves(args),
        program.sites,
        lambda site: site.name in names,
    )
    spec = Run(adding(program, tap=tap), known)

    def run(deltas: NodeTree):
        out, values = evaluate(program, spec, args, deltas)
        return split_aux(out)[0], {n: y for n, y in values.items() if n in names}

    return run


def rounded_sum(y: jax.Array, delta: jax.Array) -> jax.Array:
    """y + delta, rounded to the type of y.

    Of 16 bits XLA may leave out the rounding where it computes in 32, in one pass and not
    in another; how far noise moves a value (`sampling.rounding`) must be known.
    """
    delta = delta.astype(y.dtype)
    if y.dtype.itemsize > 2:
        return y + delta
    kind = jnp.finfo(y.dtype)
    rounded = partial(
        lax.reduce_precision, exponent_bits=kind.nexp, mantissa_bits=kind.nmant
    )
    wide = rounded(y.astype(jnp.float32))
    return rounded(wide + delta.astype(jnp.float32)).astype(y.dtype)


def adding(program: Program, at_node=lambda y: y, tap=True):
    """Visit that adds deltas at the active nodes, and keeps constant what is held.

    Of the share of each example in a statistic it hands out what its change is worth.

    A delta is an array, or a `jax.tree_util.Partial` that makes it at the node, of its
    value; in loops the leaves of both have the steps in front.
    """

    def visit(site, y, deltas):
        if site.kind == "statistic":
            held, moved = site.name in program.held, site.name in deltas
            value = deltas[site.name].astype(y.dtype) if moved else y
            value = y + value if moved and not held else value
            return value, ({site.name: y} if tap else {})
        if site.kind == "shares":
            if site.name not in deltas:
                return y, ({site.name: y} if tap else {})
            clean, gain = deltas[site.name]
            change = (y - clean).reshape(len(y), -1).astype(gain.dtype)
            return y, {site.name: change @ gain.reshape(-1)}
        if site.kind == "hold":
            if site.name in deltas:
                return lax.stop_gradient(interpreter.held(deltas[site.name], y)), {}
            value = lax.stop_gradient(y)
            return value, ({site.name: value} if tap else {})
        if site.name not in program.active:
            return y, {}
        value = at_node(y)
        if site.name in deltas:
            delta = deltas[site.name]
            value = rounded_sum(value, delta(y) if callable(delta) else delta)
        return value, ({site.name: y} if tap else {})

    return visit
