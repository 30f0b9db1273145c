"""Signals that are normalised by the size of the perturbation, not by sigma.

    signal_l = 1 / (B K) sum_k  n dL_k da_lk / ||da_k||^2

for every example, with dL the change of its loss, da_l the change of node l, n the
number of values that ||da||^2 sums over: all nodes ("global"), or each its own. For one
node with isotropic noise the expectation is the gradient to first order, at any scale of
the noise.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from bpfree.estimators import runs
from bpfree.estimators.derivative import linearized
from bpfree.estimators.runs import Run
from bpfree.program import passes
from bpfree.program.trace import NodeTree
from bpfree.sampling.loop import over_samples
from bpfree.sampling.scale import at_least_float32
from bpfree.sampling.weighting import credit

Norm = Literal["global", "per_layer"]


def activity_signals(run: Run, norm: Norm) -> tuple[NodeTree, NodeTree]:
    """ANP: da is what was injected, and what arrived from the nodes before.

    Clean pairing: accumulated over the samples; see `perturbation`.
    """
    change = over_samples(run.part.layout, _change(run))

    def chunk(draws):
        deltas = runs.deltas(run, runs.draw(run, draws))
        losses, changes = change(deltas)
        own = _typed(run, deltas)
        moved = {n: at_least_float32(y) + own[n] for n, y in changes.items()}
        found = _credited(losses, moved, run.part.nodes, norm)
        return (found, runs.changes(run, losses)), ()

    return runs.mean_over_samples(run, chunk)


def own_signals(run: Run) -> tuple[NodeTree, NodeTree]:
    """INP: da is what was injected at one node at a time; clean pairing likewise."""
    losses = runs.losses(run)
    measured = run.settings.derivative == "finite_difference"

    def chunk(draws):
        deltas = runs.deltas(run, runs.draw(run, draws))
        moved, signals, changes = _typed(run, deltas), {}, losses(deltas)
        if measured:
            changes = jax.tree.map(lambda noisy: noisy - run.clean[None], changes)
        for nodes, change in runs.by_losses(run.part, changes):
            signals |= _credited(change, moved, nodes, "global")
        return (signals, runs.changes(run, changes)), ()

    return runs.mean_over_samples(run, chunk)


def _typed(run: Run, deltas: NodeTree) -> NodeTree:
    kinds = {n: at_least_float32(run.values[n]).dtype for n in deltas}
    return {n: delta.astype(kinds[n]) for n, delta in deltas.items()}


def _credited(losses, moved: NodeTree, nodes, norm: Norm) -> NodeTree:
    weights = weigh(losses, moved, nodes, norm)
    return {s.name: credit(weights[s.name], moved[s.name], s.batch_axis) for s in nodes}


def _change(run: Run):
    """`deltas -> (dL, {node: dy})`, measured or to first order."""
    observe = passes.observed(run.program, run.args, run.part.names)
    if run.settings.derivative == "jvp":
        return linearized(observe, run.part.nodes)
    clean = run.clean, {name: run.values[name] for name in run.part.names}
    return lambda deltas: jax.tree.map(jnp.subtract, observe(deltas), clean)


def weigh(losses: jax.Array, moved, nodes, norm: Norm) -> NodeTree:
    """{node: n dL / (B ||da||^2)}, (samples, B), or (samples,) for losses ().

    Without a batch axis (a node shared by the batch, one loss for it) every value counts.
    """
    losses = at_least_float32(losses)
    examples = losses.shape[1:]

    def square(site):
        values = moved[site.name].astype(losses.dtype) ** 2
        if not examples or site.batch_axis is None:
            whole = values.reshape(len(values), -1).sum(1)
            return jnp.broadcast_to(whole[:, None], losses.shape) if examples else whole
        axis = 1 + site.batch_axis
        return values.sum([i for i in range(1, values.ndim) if i != axis])

    def count(site):
        shared = not examples or site.batch_axis is None
        return math.prod(site.shape) // (1 if shared else examples[0])

    squares = {s.name: square(s) for s in nodes}
    counts = {s.name: count(s) for s in nodes}
    if norm == "global":
        squares = dict.fromkeys(squares, sum(squares.values()))
        counts = dict.fromkeys(counts, sum(counts.values()))
    size = math.prod(examples)
    return {
        name: (counts[name] * losses / (size * squares[name])).astype(moved[name].dtype)
        for name in squares
    }
