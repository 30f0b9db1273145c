"""Noise that is not kept over the steps of a loop: it is drawn twice, step by step.

    losses     L_k, every step of a noisy pass drawing its own noise
    signals    s_t = 1 / (B K sigma) sum_k (L_k - c_k) eps_kt, eps_kt drawn again
    gradient   sum over t of pull_t(s_t), a segment of steps at a time

Between the two a sample keeps its losses only. What stays of all steps is what a clean
pass leaves: the inputs and outputs of its loops, the carries before each segment, and no
node value; and for each sample a weight per example and a key per node.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from bpfree.estimators import runs, statistics
from bpfree.estimators.estimate import Estimate, Estimator
from bpfree.estimators.faults import find_fault
from bpfree.estimators.objective import of_losses
from bpfree.estimators.settings import Settings
from bpfree.program import interpreter, passes, tags
from bpfree.program.loops import in_segments, with_starts
from bpfree.program.tags import Site
from bpfree.program.trace import Program, name_hash, split_aux
from bpfree.sampling.loop import mean_of, sum_over_draws
from bpfree.sampling.rounding import as_felt
from bpfree.sampling.scale import rms, scaled, sizes_at
from bpfree.sampling.weighting import weighted_sum

SEGMENT = 16  # steps of a loop that are pulled side by side, from a carry that is kept


def make_estimator(settings: Settings) -> Estimator:
    """The estimator of the module docstring, of all nodes at once.

    Raises ValueError for what needs the noise kept.
    """
    measured = settings.derivative == "finite_difference" and not settings.baseline.whole
    (layout,) = settings.schedule.layouts[:1]
    if not measured or settings.schedule.layerwise or layout.sharding is not None:
        raise ValueError(
            "redraw=True keeps one loss of every sample and example, and no noise: it "
            "takes derivative='finite_difference', no layerwise=, no sharding=, and no "
            "baseline that takes all losses at once, as 'leave_one_out' does"
        )

    def estimate(key, args, state, wanted) -> Estimate:
        run = runs.begin(settings, key, args, state, wanted)
        gradient, clean, aux, sizes, changes = _estimate(run)
        changes = tags.sum_shards(changes, run.program.losses, lax.pmean)
        fault = find_fault(run.program, sizes, run.sigma, clean, changes)
        return Estimate(gradient, clean, aux, fault)

    return of_losses(settings.loss_fn, estimate)


def _estimate(run: runs.Run):
    """(gradient, losses of the clean pass, aux, {node: rms of its values}, changes)."""
    loops: list[Any] = []

    def keeping(*args, **options):
        loops.append(with_starts(SEGMENT, *args, **options))
        return loops[-1][0]

    spec = interpreter.Run(_sizes(run.program), scan=keeping)
    out, values = passes.evaluate(run.program, spec, run.args)
    clean, aux = split_aux(out)
    noisy = run._replace(program=run.program.holding(values), clean=clean, values=values)
    sizes = sizes_at(run.program.sites, values)
    (part,) = runs.split(noisy._replace(program=statistics.answered(noisy)))
    centred = _weights(part)
    gradient = _pulled(run, _signals(part, centred), loops)
    changes = runs.changes(part, centred.reshape(-1, *clean.shape))
    return gradient, clean, aux, sizes, mean_of(changes, part.num_samples)


def _sizes(program: Program):
    """Visit of a clean pass that hands out the rms of nodes, at each step of loops."""
    plain = passes.adding(program)

    def visit(site, y, deltas):
        value, out = plain(site, y, deltas)
        return value, ({site.name: rms([y])[0]} if site.name in program.active else out)

    return visit


def _weights(run: runs.Run) -> jax.Array:
    """Centred losses of all samples, (draws, group, *loss shape)."""
    losses, weigh = runs.losses(run), runs.weigh(run)

    def chunk(draws):
        deltas = {site.name: _delta(run, site, draws) for site in run.part.nodes}
        centred = weigh(draws, lambda: losses(deltas))
        return (), centred.reshape(len(draws), -1, *centred.shape[1:])

    return sum_over_draws(chunk, run.part.layout)[1]


def _delta(run: runs.Run, site: Site, draws) -> Partial:
    """sigma times the noise of a chunk of draws, to be made at the node.

    The leaves have the samples in front and then the steps.
    """
    plan, group = run.settings.plan, run.settings.plan.group

    def at_node(key, member, sigma, y):
        noise = plan.draw(key, y.shape, _step_axis(site))
        return scaled(sigma, noise[member])

    keys = jnp.repeat(jax.vmap(lambda d: _keys(run, site, d))(draws), group, axis=0)
    shape = keys.shape
    members = jnp.tile(jnp.arange(group, dtype=jnp.int32), len(draws))
    members = jnp.broadcast_to(members.reshape(-1, *[1] * len(shape[1:])), shape)
    return Partial(at_node, keys, members, _repeated(run.sigma[site.name], shape))


def _signals(run: runs.Run, centred) -> dict[str, Partial]:
    """{node: its signal, to be made at the node}; the leaves have the steps in front."""
    weights = centred.reshape(-1, *centred.shape[2:])
    spread = runs.credited(run, weights / run.num_samples)
    return {s.name: _signal(run, s, spread[s.name]) for s in run.part.nodes}


def _signal(run: runs.Run, site: Site, spread) -> Partial:
    plan, num_draws = run.settings.plan, run.part.layout.num_draws
    score = plan.score or (lambda noise: noise)

    def at_node(keys, weights, sigma, y):
        def add(total, one):
            key, w = one
            noise = score(plan.draw(key, y.shape, _step_axis(site)))
            return total + weighted_sum(w, noise), None

        start = tags.zeros(jax.typeof(y)).astype(jnp.float32)
        signal = scaled(1 / sigma, lax.scan(add, start, (keys, weights))[0])
        return as_felt(signal, sigma, y, plan.score is None)

    lead = site.shape[: site.steps]
    draws = jnp.arange(num_draws)
    keys = jax.vmap(lambda d: _keys(run, site, d), out_axes=site.steps)(draws)
    spread = jnp.broadcast_to(
        spread, (len(spread), *lead, *spread.shape[1 + site.steps :])
    )
    spread = jnp.moveaxis(spread, 0, site.steps)
    rest = spread.shape[1 + site.steps :]
    weights = spread.reshape(*lead, num_draws, plan.group, *rest)
    return Partial(at_node, keys, weights, _repeated(run.sigma[site.name], lead))


def _keys(run: runs.Run, site: Site, draw) -> jax.Array:
    """The keys of a node's noise in one draw: one for each step of its loops."""
    key = jax.random.fold_in(run.key, draw)
    key = jax.random.fold_in(key, name_hash(site.name))
    return jax.random.split(key, site.shape[: site.steps])


def _step_axis(site: Site) -> int | None:
    return None if site.batch_axis is None else site.batch_axis - site.steps


def _repeated(sigma, lead):
    return jnp.broadcast_to(sigma, (*lead, *sigma.shape))


def _pulled(run: runs.Run, signals, loops):
    """d/dparams of sum_t <y_t, s_t> + the mean loss, with the graph cut at the nodes."""
    plain = passes.adding(run.program, lax.stop_gradient)

    def visit(site, y, signals):
        value, out = plain(site, y, {})
        if site.name not in signals:
            return value, {}
        signal = lax.stop_gradient(signals[site.name](y)).astype(y.dtype)
        return value, {site.name: (y * signal).sum()}

    def again(*args, **options):
        return in_segments(next(upcoming), SEGMENT)(*args, **options)

    upcoming = iter(loops)
    spec = interpreter.Run(visit, scan=again)

    def surrogate(params):
        args = (params, *run.args[1:])
        out, products = passes.evaluate(run.program, spec, args, signals)
        loss = split_aux(out)[0].mean()
        return loss + sum(p.sum().astype(loss.dtype) for p in products.values())

    return jax.grad(surrogate)(run.args[0])
