"""The arithmetic that all node-perturbation-like estimators share.

With K samples, node noise eps_k, loss L_kb of example b under sample k, baseline c_kb and
score s (eps itself for unit Gaussian noise),

    signal = 1 / (B K sigma) sum_k (L_kb - c_kb) s(eps_k)      per node and example
    gradient = pull(signal)                                    one product per layer

"clean" pairing lets the signal meet the clean inputs of each layer, once, after all
samples; "noisy" pairing lets every sample's term meet that sample's own noisy inputs. All
nodes are perturbed at once, or layer-wise, one at a time (`layerwise`); L_k - L_0 is
measured, or its first order computed (`derivative`).
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.estimators import faults, runs, statistics
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate, Estimator
from bpfree.estimators.objective import of_losses
from bpfree.estimators.runs import Run
from bpfree.estimators.settings import Settings, make_settings
from bpfree.program import passes, tags
from bpfree.program.trace import NodeTree, split_aux
from bpfree.sampling.learned_scale import init_scales, updated_scales
from bpfree.sampling.loop import copies, over_samples, sum_over_devices
from bpfree.sampling.scale import at_least_float32, sizes_at
from bpfree.sampling.weighting import weighted_sum


class Found(NamedTuple):
    """What a chunk of samples adds up to, and after division by K the mean over all.

    Attributes:
      gradient: signals {node: ...} (clean pairing), or params-shaped (noisy).
      slopes: {node: dJ / d log sigma}; {} unless sigma is learned.
      loss: of the noisy passes, (); () where a clean pass tells it.
      sizes: rms of the noisy values at each site, (n,); () likewise.
      changes: {nodes of a part: mean square of L_k - L_0}; {} if that is not measured.
    """

    gradient: Any
    slopes: Any = {}
    loss: Any = ()
    sizes: Any = ()
    changes: Any = {}


Signals = Callable[[Run], tuple[NodeTree, NodeTree]]
"""Run -> ({node: estimate of d(mean loss) / dy}, of the nodes of its part, `changes`)."""


def build(
    loss_fn, *, seed, example_batch, signals: Signals | None = None, **options: Any
) -> EstimatorTransformation:
    """The transformation that a constructor returns; `options` of `make_settings`."""
    settings = make_settings(loss_fn, **options)
    estimator = make_estimator(settings, signals, example_batch)
    return transformation(estimator, loss_fn, seed, example_batch)


def make_estimator(
    settings: Settings, signals: Signals | None = None, example_batch: Any = None
) -> Estimator:
    """The estimator of the module docstring, or with other signals (clean pairing)."""

    def init(params):
        sites = lambda: _example_nodes(settings, params, example_batch)  # noqa: E731
        return init_scales(settings.sigma, settings.sigma_optimizer, sites)

    def estimate(key, args, state, wanted) -> Estimate:
        run = runs.begin(settings, key, args, state, wanted)
        program = run.program
        if _is_forward_only(run):
            aux, clean, found = None, None, _noisy(run)
            gradient, value, sizes = found.gradient, found.loss, found.sizes
        else:
            run = run._replace(apart=_is_apart(run))
            out, values, pull = _clean_pass(run)
            clean, aux = split_aux(out)
            noisy = program.holding(values)
            run = run._replace(program=noisy, clean=clean, values=values)
            run = run._replace(program=statistics.answered(run))
            if settings.noisy:
                found = _noisy(run)
                gradient = found.gradient
            else:
                found = _clean(run, signals)
                with jax.named_scope("bpfree.pull"):
                    gradient = pull(found.gradient)
            value, sizes = clean.mean(), sizes_at(program.sites, values)
        injected = run.sigma if settings.derivative == "finite_difference" else {}
        changes = tags.sum_shards(found.changes, program.losses, lax.pmean)
        fault = faults.find_fault(program, sizes, injected, clean, changes)
        slopes = tags.sum_shards(found.slopes, program.losses, lax.pmean)
        inner = updated_scales(state.inner, slopes, settings.sigma_optimizer)
        return Estimate(gradient, value, aux, fault, inner)

    return of_losses(settings.loss_fn, estimate, init)


def _is_forward_only(run: Run) -> bool:
    """Whether the noisy passes tell all: no clean pass is made then."""
    holds = any(s.kind in ("hold", "statistic") for s in run.program.sites)
    clean = not run.settings.noisy or run.settings.baseline.clean
    return not (clean or holds or run.program.has_aux)


def _example_nodes(settings: Settings, params, example_batch):
    if example_batch is None:
        raise ValueError(
            "a learned sigma has the shapes of the nodes: pass example_batch= (a batch, "
            "or ShapeDtypeStructs of one)"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return runs.traced(settings, params, example_batch, key).nodes


# ---------------------------------------------------------------------- the two pairings


def _clean(run: Run, signals: Signals | None) -> Found:
    """Clean pairing: noise weighted by centred losses, summed over the samples."""
    parts = runs.split(run)
    if signals is None:
        found = [_clean_part(part) for part in parts]
    else:
        made = (signals(part) for part in parts)
        together = sum_over_devices if run.apart else lambda changes: changes
        found = [Found(gradient, changes=together(c)) for gradient, c in made]
    gradient = _union(f.gradient for f in found)
    slopes, changes = _union(f.slopes for f in found), _union(f.changes for f in found)
    return Found(gradient, slopes, changes=changes)


def _union(trees: Iterable[NodeTree]) -> NodeTree:
    return {name: x for tree in trees for name, x in tree.items()}


def _is_apart(run: Run) -> bool:
    """Whether each device pulls its own part of the signals, and gradients are summed.

    They are where the mesh has further axes: gradients are summed over the batch's in any
    case, and over all axes at once. On samples alone it pays where signals are larger.
    """
    settings, program = run.settings, run.program
    layout = settings.schedule.layouts[0]
    if settings.noisy or layout.devices == 1:
        return False
    if tags.has_custom_vjp(program.jaxpr):
        return False
    signals = sum(math.prod(site.shape) for site in program.nodes)
    parameters = sum(p.size for p in jax.tree.leaves(run.args[0]))
    return layout.mesh_size > layout.devices or parameters < signals


def _clean_pass(run: Run):
    """(output of loss_fn, {node: y}, pull), of rows of signals if devices are apart."""
    if not run.apart:
        return passes.cut_vjp(run.program, run.args)
    layout = run.settings.schedule.layouts[0]
    spread = partial(copies, layout)
    return passes.cut_vjp_by_rows(run.program, run.args, layout.devices, spread)


def _clean_part(run: Run) -> Found:
    losses, weigh = runs.losses(run), runs.weigh(run)

    def chunk(draws):
        noise = runs.draw(run, draws)
        weights = weigh(draws, lambda: losses(runs.deltas(run, noise)))
        signals = runs.signals(run, weights, noise, weighted_sum)
        slopes, changes = runs.slopes(run, weights, noise), runs.changes(run, weights)
        return Found(signals, slopes, changes=changes), ()

    found = runs.mean_over_samples(run, chunk)
    found = found._replace(gradient=runs.as_moved(run, found.gradient))
    if not run.apart:
        return found
    slopes, changes = map(sum_over_devices, (found.slopes, found.changes))
    return found._replace(slopes=slopes, changes=changes)


def _noisy(run: Run) -> Found:
    """Noisy pairing: the parts' gradients added up, and the mean of their losses."""
    found = [_noisy_part(part) for part in runs.split(run)]
    total = jax.tree.map(lambda *g: sum(g[1:], g[0]), *(f.gradient for f in found))
    cast = lambda g, p: g.astype(jnp.result_type(p))  # noqa: E731
    return Found(
        jax.tree.map(cast, total, run.args[0]),
        _union(f.slopes for f in found),
        () if run.clean is not None else sum(f.loss for f in found) / len(found),
        () if run.clean is not None else sum(f.sizes for f in found),
        _union(f.changes for f in found),
    )


def _noisy_part(run: Run) -> Found:
    """One vjp per chunk, outside the vmap over its samples."""
    weigh = runs.weigh(run)

    def chunk(draws):
        noise = runs.draw(run, draws)
        deltas = runs.deltas(run, noise)

        def surrogate(params):
            def one(deltas):
                args = (params, *run.args[1:])
                out, values = passes.cut(run.program, args, deltas)
                mine = {name: values[name] for name in deltas}
                return split_aux(out)[0], mine

            losses, values = over_samples(run.part.layout, one)(deltas)
            return (losses, values), (losses, values)

        _, vjp, (losses, values) = jax.vjp(surrogate, run.args[0], has_aux=True)
        weights = weigh(draws, lambda: losses)
        behind_last = jnp.full_like(losses, run.share / run.program.losses.size)
        terms = runs.signals(run, weights, noise, jnp.multiply)
        terms = jax.tree.map(lambda t, y: t.astype(y.dtype), terms, values)
        gradient = vjp((behind_last, terms))[0]
        gradient = jax.tree.map(at_least_float32, gradient)
        slopes, changes = runs.slopes(run, weights, noise), runs.changes(run, weights)
        found = Found(gradient, slopes, changes=changes)
        return (found if run.clean is not None else _seen(run, found, losses, values)), ()

    return runs.mean_over_samples(run, chunk)


def _seen(run: Run, found: Found, losses, values) -> Found:
    """With the loss and sizes that a clean pass gives, from the noisy ones of a chunk."""
    each = at_least_float32(losses).reshape(len(losses), -1)
    sizes = len(losses) * sizes_at(run.program.sites, values)
    return found._replace(loss=each.mean(1).sum(), sizes=sizes)
