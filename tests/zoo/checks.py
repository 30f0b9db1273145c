"""What must hold for any loss function, whoever wrote it.

`exact` needs no sampling: with y the nodes, and G = d(mean loss)/dy through `inject`,

    pull(G) = d(mean loss)/d(params)     leaf by leaf.

It sees a product without a node, a parameter without a block, and a node pulled to the
wrong parameter. It cannot see a wrong batch axis, which only decides which losses a
node answers to: `miscredited` does, exactly as well, and `slopes` by sampling.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bpfree
from bpfree.program import passes
from bpfree.program.marking import param_path
from bpfree.program.trace import trace
from tests.problems import mean_loss
from tests.statistics import LIMIT
from tests.zoo.case import Case


def arguments(case: Case) -> tuple:
    """What `loss_fn` takes behind params."""
    return (case.batch,) if case.key is None else (case.batch, case.key)


def gradient(case: Case) -> Any:
    """The truth: backprop of the mean loss."""

    def mean(params):
        return mean_loss(case.loss_fn(params, *arguments(case)))

    return jax.jit(jax.grad(mean))(case.params)


def _moving(truth: Any) -> list[bool]:
    """For each leaf whether it moves the loss: more than by rounding."""
    norms = [float(jnp.linalg.norm(g)) for g in jax.tree.leaves(truth)]
    return [n > 1e-12 * max(norms) for n in norms]


def uncovered(case: Case, nodes=None) -> list[str]:
    """Parameters that move the loss and stand in no block."""
    found = bpfree.blocks(case.loss_fn, case.params, *arguments(case), nodes=nodes)
    covered = {path for block in found for path in block.params}
    truth = gradient(case)
    paths = [param_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(truth)]
    moving = _moving(truth)
    return [p for p, m in zip(paths, moving, strict=True) if m and p not in covered]


def carried(case: Case, nodes=None) -> int:
    """Error signals that a block carries through a weight: 0 without backpropagation."""
    found = bpfree.blocks(case.loss_fn, case.params, *arguments(case), nodes=nodes)
    return sum(block.carried for block in found)


def inexact(case: Case, tolerance: float = 1e-6, nodes=None) -> dict[str, float]:
    """Leaves whose pulled node gradient is off, and by how much of their own norm.

    A leaf without a true gradient is measured against the largest leaf, for rounding.
    """
    batch, *key = arguments(case)

    @jax.jit
    def pulled(params):
        _, values, pull = bpfree.pullback(case.loss_fn, nodes)(params, batch, *key)

        def mean(deltas):
            run = bpfree.inject(case.loss_fn, nodes)
            return mean_loss(run(params, batch, deltas, *key)[0])

        return pull(jax.grad(mean)(jax.tree.map(jnp.zeros_like, values)))

    truth = gradient(case)
    leaves = jax.tree_util.tree_leaves_with_path(truth)
    largest = max(float(jnp.linalg.norm(g)) for _, g in leaves)
    found = jax.tree.leaves(pulled(case.params))
    off = {}
    for (path, right), got, moves in zip(leaves, found, _moving(truth), strict=True):
        scale = float(jnp.linalg.norm(right)) if moves else largest
        error = float(jnp.linalg.norm(got - right)) / scale
        if not error < tolerance:
            off[param_path(path)] = error
    return off


def miscredited(case: Case, nodes=None, tolerance: float = 1e-10) -> dict[str, float]:
    """Nodes whose slice of one example moves the loss of another, relative to its own.

    d loss_b / d y[.., c, ..] must vanish for b != c on the batch axis of every node that
    has one; what is held (`bpfree.hold`, statistics of the batch) stays, as it does in
    noisy passes, where a loss answers for its example's share of each statistic.
    """
    batch, *key = arguments(case)
    args = (case.params, batch, *key)
    program = trace(case.loss_fn, *args, nodes=nodes)
    sites = [s for s in program.nodes if s.batch_axis is not None]
    if program.batch_size is None or not sites:
        return {}

    @jax.jit
    def meetings(args):
        values = passes.cut(program, args)[1]
        shares = [s for s in program.sites if s.kind == "shares"]
        gains = {s.name: jnp.cos(jnp.indices(s.shape).sum(0)[0] + 1.0) for s in shares}
        noisy = program.holding(values).answering(values, gains)

        def losses(deltas):
            return passes.perturbed(noisy, args)(deltas)

        zeros = {s.name: jnp.zeros(s.shape, s.dtype) for s in sites}
        out, pull = jax.vjp(losses, zeros)
        rows = jnp.eye(len(out), dtype=out.dtype)
        by_loss = jax.lax.map(lambda row: pull(row)[0], rows)  # vmap errs on Haiku's LSTM

        def largest(site):
            per_example = jnp.moveaxis(by_loss[site.name], site.batch_axis + 1, 1)
            return jnp.abs(per_example).reshape(len(out), len(out), -1).max(-1)

        return {s.name: largest(s) for s in sites}

    found = {}
    for name, table in meetings(args).items():
        own = jnp.diag(table).max()
        other = jnp.where(jnp.eye(len(table), dtype=bool), 0.0, table).max()
        if not other <= tolerance * own:
            found[name] = float(other / own)
    return found


def unfelt(case: Case, nodes=None, tolerance=1e-4) -> dict[str, float]:
    """Nodes whose noise moves the loss otherwise than their derivative says.

    Noise that is held where the derivative is not (behind a `stop_gradient` of a function
    with a rule of its own, say) is seen by no check of derivatives. The larger step is
    for models that compute parts in single precision, whatever they are given.
    """
    args = (case.params, *arguments(case))
    program = trace(case.loss_fn, *args, nodes=nodes)

    @jax.jit
    def run(args, deltas):
        noisy = program.holding(passes.cut(program, args)[1])
        return jax.value_and_grad(lambda d: passes.perturbed(noisy, args)(d).mean())(
            deltas
        )

    zeros = {s.name: jnp.zeros(s.shape, s.dtype) for s in program.nodes}

    def difference(name, along, step):
        up, down = (run(args, zeros | {name: x * along})[0] for x in (step, -step))
        return (up - down) / (2 * step)

    slopes = run(args, zeros)[1]
    scale = max(float(jnp.linalg.norm(g)) for g in slopes.values())
    found = {}
    for name, slope in slopes.items():
        along = jnp.cos(jnp.arange(slope.size) + 1.0).reshape(slope.shape)
        error = min(
            abs(float(difference(name, along, step) - jnp.vdot(along, slope)))
            for step in (1e-5, 1e-3)
        )
        if not error <= tolerance * scale:
            found[name] = error / scale
    return found


class Slope(NamedTuple):
    """Slope of the mean estimate of one leaf on its truth, and its standard error."""

    slope: float
    error: float

    @property
    def passed(self) -> bool:
        return abs(self.slope - 1) < LIMIT * self.error + 1e-4  # of sigma^2


def slopes(
    case: Case, repeats: int = 64, num_samples: int = 128, **options: Any
) -> dict[str, Slope]:
    """Node perturbation projected on the truth, leaf by leaf, in one compiled program.

    The key of the loss is fixed, as it is within one update. The last entry, "(all)", is
    the slope of all leaves together, whose error says what the gate can resolve.
    """

    def loss_fn(params, batch):
        return case.loss_fn(params, *arguments(case._replace(batch=batch)))

    tx = bpfree.node_perturbation(
        loss_fn,
        num_samples=num_samples,
        **{"sigma": 1e-4, "example_batch": case.batch} | options,
    )
    truth = gradient(case)
    state = tx.init(case.params)

    @jax.jit
    def projections(keys):
        def one(key):
            result = tx.estimator.estimate(key, case.params, case.batch, state)
            return jax.tree.map(jnp.vdot, result.gradient, truth)

        return jax.lax.map(one, keys)

    leaves = jax.tree_util.tree_leaves_with_path(
        projections(jax.random.split(jax.random.key(0), repeats))
    )
    squares = [float(jnp.vdot(g, g)) for g in jax.tree.leaves(truth)]
    rows = [np.asarray(p) for _, p in leaves]
    found = {
        param_path(path): _slope(row / square)
        for (path, _), row, square, moves in zip(
            leaves, rows, squares, _moving(truth), strict=True
        )
        if moves
    }
    return found | {"(all)": _slope(sum(rows) / sum(squares))}


def _slope(x: np.ndarray) -> Slope:
    return Slope(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))))


def estimators(case: Case) -> dict[str, Any]:
    """Every estimator that trains through nodes or parameters, as cheap as it comes."""
    loss_fn, batch = case.loss_fn, case.batch
    few = {"num_samples": 2, "example_batch": batch}
    return {
        "node_perturbation": bpfree.node_perturbation(loss_fn, **few),
        "layerwise": bpfree.node_perturbation(loss_fn, layerwise=True, **few),
        "likelihood_ratio": bpfree.likelihood_ratio(loss_fn, **few),
        "activity": bpfree.activity_node_perturbation(loss_fn, **few),
        "low_rank": bpfree.weight_perturbation(loss_fn, rank=1, **few),
        "forward_gradient": bpfree.forward_gradient(loss_fn, **few),
        "learned_feedback": bpfree.learned_feedback(
            loss_fn, shrinkage=1.0, fit=optax.adam(1e-3), **few
        ),
        "decorrelated": optax.chain(
            bpfree.node_perturbation(loss_fn, **few),
            bpfree.decorrelate(optax.adam(1e-3), loss_fn, example_batch=batch),
        ),
    }


def stepped(tx: Any, case: Case) -> list[str]:
    """Leaves that one step of an optimiser left without a finite update; faults raise."""

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zeros, tx.init(params), params, batch=case.batch)

    updates, state = step(case.params)
    fault = bpfree.fault_message(state, case.loss_fn, case.params, case.batch)
    assert not fault, fault
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    return [param_path(path) for path, u in leaves if not bool(jnp.isfinite(u).all())]
