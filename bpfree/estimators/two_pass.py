"""Two noisy passes instead of a clean and a noisy one.

For systems whose noise cannot be read or switched off: only losses L and node values a
are seen, of passes with different keys. A pair of passes gives

    dL = L_1 - L_2,   da = a_1 - a_2,   signal_l = N dL da_l / ||da||^2

whose noise has mean zero, even where the system's has not; the signal meets the layer
inputs of the first pass.
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.random import fold_in

from bpfree.estimators import layerwise, normalized, runs
from bpfree.estimators.estimate import LOST_LOSS, NO_FAULT, Estimate, Estimator
from bpfree.estimators.faults import find_fault, is_lost
from bpfree.estimators.objective import of_losses
from bpfree.estimators.runs import Run, summed_squares
from bpfree.estimators.settings import Settings
from bpfree.program import passes, tags
from bpfree.program.blocks import check_blocks, warn_of_backpropagation
from bpfree.program.trace import NodeTree, arguments, split_aux, takes_key
from bpfree.sampling.loop import mean_of, over_samples, sum_over_draws
from bpfree.sampling.scale import at_least_float32, least_at, scales, sizes_at
from bpfree.sampling.weighting import per_sample


class _Pair(NamedTuple):
    """What a pair of passes measures: both changes are first minus second."""

    change: jax.Array
    changes: NodeTree


class _First(NamedTuple):
    """What is reported of a first pass."""

    value: jax.Array  # mean loss
    aux: Any
    fault: jax.Array
    square: jax.Array  # of the losses' change to the second, mean over the batch


def check(loss_fn, sigma, antithetic: bool, derivative: str) -> None:
    """Raises ValueError for options that two noisy passes do not have."""
    if antithetic or derivative == "jvp":
        raise ValueError(
            "reference='noisy' compares two independent noisy passes: it takes no "
            "antithetic pairs and no derivative='jvp', which need a clean one"
        )
    if sigma is None and not takes_key(loss_fn):
        raise ValueError(
            "sigma=None injects no noise, so the noise is the system's own: give loss_fn "
            "a third argument `key`, which is another one in every pass (pass it on to "
            "what is noisy, if only to keep two passes from being computed once)"
        )


def make_estimator(settings: Settings, norm: normalized.Norm) -> Estimator:
    """The estimator of the module docstring: K pairs, and a weight product for each."""

    def estimate(key, args, state, wanted) -> Estimate:
        leaves = jax.tree.leaves(args[1])
        key, *own = (reduce(tags.fold_in_shards, leaves, k) for k in (key, *args[2:]))
        program = runs.traced(settings, *args).shared()
        warn_of_backpropagation(check_blocks(program, args, wanted), settings.nodes)
        sigma = None
        if settings.sigma is not None:
            sigma = scales(settings.sigma, state.count, program.nodes)
        (part,) = layerwise.parts(settings.schedule, program)
        run = Run(settings, program, args, key, sigma, None, {}, part)
        gradient, firsts = _gradient(run, own[0] if own else key, norm)
        return Estimate(
            jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), gradient, args[0]),
            firsts.value.mean(),
            jax.tree.map(lambda a: a[0], firsts.aux),
            _fault(run, firsts),
        )

    return of_losses(settings.loss_fn, estimate)


def _fault(run: Run, firsts: _First) -> jax.Array:
    """Of all pairs: the first that one of them has, or losses whose change is lost."""
    sigma = least_at(run.program.sites, run.sigma or {}).min()
    lost = is_lost(firsts.square.mean(), firsts.value, sigma)
    code = firsts.fault[(firsts.fault != NO_FAULT).argmax()]
    return jnp.where((code == NO_FAULT) & lost, LOST_LOSS, code)


def _gradient(run: Run, key, norm: normalized.Norm):
    """(gradient, what the K first passes report)."""
    nodes, count = run.part.nodes, run.num_samples

    def chunk(draws):
        group = run.settings.plan.group
        first = (draws[:, None] * group + jnp.arange(group)[None]).ravel()
        keys = [jax.vmap(partial(fold_in, key))(k) for k in (first, first + count)]
        deltas = [_deltas(run, draws), _deltas(run, draws + run.part.layout.num_draws)]

        def surrogate(params):
            one = partial(_pair, run, params)
            return over_samples(run.part.layout, one)(*keys, *deltas)

        (losses, _), vjp, (pair, report) = jax.vjp(surrogate, run.args[0], has_aux=True)
        weights = normalized.weigh(pair.change, pair.changes, nodes, norm)
        terms = {
            s.name: per_sample(
                weights[s.name], pair.changes[s.name], s.batch_axis
            ).astype(s.dtype)
            for s in nodes
        }
        behind_last = jnp.full_like(losses, 1 / losses[0].size)
        gradient = vjp((behind_last, terms))[0]
        report = jax.tree.map(lambda a: a.reshape(-1, group, *a.shape[1:]), report)
        return jax.tree.map(at_least_float32, gradient), report

    sums, firsts = sum_over_draws(chunk, run.part.layout)
    firsts = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), firsts)
    return mean_of(sums, count), firsts


def _pair(run: Run, params, key, other_key, deltas, other_deltas):
    """((losses, nodes of the first pass), (what the pair measures, report))."""

    def noisy_pass(program, params, key, deltas):
        batch = run.args[1]
        args = arguments(run.settings.loss_fn, params, batch, key)
        out, values = passes.cut(program, args, deltas)
        return *split_aux(out), values

    losses, aux, values = noisy_pass(run.program, params, key, deltas)
    still = lax.stop_gradient
    held = run.program.holding(values)
    others = noisy_pass(held, still(params), other_key, other_deltas)
    seen = {s.name: values[s.name] for s in run.part.nodes}
    difference = {name: at_least_float32(y - others[2][name]) for name, y in seen.items()}
    for name in deltas:
        own = deltas[name] - other_deltas[name]
        difference[name] += own.astype(difference[name].dtype)
    sizes = sizes_at(run.program.sites, values)
    fault = find_fault(run.program, sizes, run.sigma or {})
    pair = _Pair(losses - others[0], difference)
    square = summed_squares((losses - others[0])[None])
    report = _First(losses.mean(), aux, fault, square)
    return (losses, seen), still((pair, report))


def _deltas(run: Run, draws) -> NodeTree:
    """What is injected, samples in front; nothing if the system's own noise must do."""
    if run.sigma is None:
        return {}
    return runs.deltas(run, runs.draw(run, draws))
