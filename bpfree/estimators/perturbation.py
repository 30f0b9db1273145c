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
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.estimators import redrawn, runs
from bpfree.estimators.base import (
    BAD_LOSS,
    BAD_SIGMA,
    NO_FAULT,
    SMALL_SIGMA,
    Estimate,
    Estimator,
    EstimatorTransformation,
    transformation,
)
from bpfree.estimators.runs import Run
from bpfree.estimators.settings import Settings, check_program, make_settings
from bpfree.program import passes, tags
from bpfree.program.blocks import check_blocks
from bpfree.program.trace import NodeTree, Program, arguments, split_aux, trace
from bpfree.sampling.loop import copies, over_samples, sum_over_devices
from bpfree.sampling.noise import weighted_sum
from bpfree.sampling.scale import (
    at_least_float32,
    current_scales,
    init_scales,
    least,
    rms,
    scales,
    smallest,
    updated_scales,
)


class Found(NamedTuple):
    """What a chunk of samples adds up to, and after division by K the mean over all.

    Attributes:
      gradient: signals {node: ...} (clean pairing), or params-shaped (noisy).
      slopes: {node: dJ / d log sigma}; {} unless sigma is learned.
      loss: of the noisy passes, (); () where a clean pass tells it.
      sizes: rms of its nodes' noisy values, (n,); () likewise.
    """

    gradient: Any
    slopes: Any = {}
    loss: Any = ()
    sizes: Any = ()


Signals = Callable[[Run], NodeTree]
"""Run -> {node: estimate of d(mean loss) / dy}, of the nodes of its part."""


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

    def estimate(key, params, batch, state, wanted=None) -> Estimate:
        noise_key, loss_key = jax.random.split(key)
        args = arguments(settings.loss_fn, params, batch, loss_key)
        program = traced(settings, params, batch, loss_key)
        check_blocks(program, args, wanted)
        noise_key = tags.fold_in_shards(noise_key, program.losses)
        sigma = _sigma_of(settings, state, program)
        run = Run(settings, program, args, noise_key, sigma, None, {})
        if _is_forward_only(run):
            aux, found = None, _noisy(run)
            gradient, value, sizes = found.gradient, found.loss, found.sizes
            names = program.active
        elif settings.redraw:
            found = Found({})
            gradient, clean, aux, sizes = redrawn.estimate(run)
            value, names = clean.mean(), program.active
        else:
            run = run._replace(apart=_is_apart(run))
            out, values, pull = _clean_pass(run)
            clean, aux = split_aux(out)
            noisy = program.holding(values)
            run = run._replace(program=noisy, clean=clean, values=values)
            if settings.pairing == "noisy":
                found = _noisy(run)
                gradient = found.gradient
            else:
                found = _clean(run, signals)
                gradient = pull(runs.encoded(settings.encode_signals, found.gradient))
            value, names = clean.mean(), values.keys()
            sizes = rms([values[s.name] for s in program.sites if s.name in values])
        injected = sigma if settings.derivative == "finite_difference" else {}
        fault = find_fault(program, names, sizes, value, injected)
        slopes = tags.sum_shards(found.slopes, program.losses, lax.pmean)
        inner = updated_scales(state.inner, slopes, settings.sigma_optimizer)
        return Estimate(gradient, value.astype(jnp.float32), aux, fault, inner)

    return Estimator(init, estimate)


def traced(settings: Settings, params, batch, key) -> Program:
    """The traced loss function; raises ValueError where it and the settings disagree."""
    axes = 1 if settings.credit is None else 2
    program = trace(settings.loss_fn, params, batch, key, settings.nodes, loss_axes=axes)
    check_program(settings, program)
    return program


def _sigma_of(settings: Settings, state, program) -> NodeTree:
    """The scales of this step; an exact derivative has no step size."""
    if settings.derivative == "jvp" or settings.sigma is None:
        return scales(1.0, state.count, program.nodes)
    return current_scales(settings.sigma, state.inner, state.count, program.nodes)


def _is_forward_only(run: Run) -> bool:
    """Whether the noisy passes tell all: no clean pass is made then."""
    holds = any(site.kind == "hold" for site in run.program.sites)
    centre = run.settings.baseline in ("clean", "leave_one_out")
    clean = run.settings.pairing == "clean" or centre
    return not (clean or holds or run.program.has_aux)


def _example_nodes(settings: Settings, params, example_batch):
    if example_batch is None:
        raise ValueError(
            "a learned sigma has the shapes of the nodes: pass example_batch= (a batch, "
            "or ShapeDtypeStructs of one)"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return traced(settings, params, example_batch, key).nodes


# ---------------------------------------------------------------------- the two pairings


def _clean(run: Run, signals: Signals | None) -> Found:
    """Clean pairing: noise weighted by centred losses, summed over the samples."""
    total = Found({}, {})
    for part in runs.split(run):
        found = _clean_part(part) if signals is None else Found(signals(part))
        gradient = total.gradient | found.gradient
        total = Found(gradient, total.slopes | found.slopes)
    return total


def _is_apart(run: Run) -> bool:
    """Whether each device pulls its own part of the signals, and gradients are summed.

    They are where the mesh has further axes: gradients are summed over the batch's in any
    case, and over all axes at once. On samples alone it pays where signals are larger.
    """
    settings, program = run.settings, run.program
    layout = settings.schedule.layouts[0]
    if settings.pairing == "noisy" or settings.encode_signals is not None:
        return False
    if layout.devices == 1 or tags.has_custom_vjp(program.jaxpr):
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
        return Found(signals, runs.slopes(run, weights, noise)), ()

    found = runs.mean_over_samples(run, chunk)
    return found._replace(slopes=sum_over_devices(found.slopes)) if run.apart else found


def _noisy(run: Run) -> Found:
    """Noisy pairing: the parts' gradients added up, and the mean of their losses."""
    parts = runs.split(run)
    found = [_noisy_part(part) for part in parts]
    total = jax.tree.map(lambda *g: sum(g[1:], g[0]), *(f.gradient for f in found))
    cast = lambda g, p: g.astype(jnp.result_type(p))  # noqa: E731
    return Found(
        jax.tree.map(cast, total, run.args[0]),
        {name: slope for f in found for name, slope in f.slopes.items()},
        () if run.clean is not None else sum(f.loss for f in found) / len(found),
        () if run.clean is not None else jnp.concatenate([f.sizes for f in found]),
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
        found = Found(gradient, runs.slopes(run, weights, noise))
        return (found if run.clean is not None else _seen(run, found, losses, values)), ()

    return runs.mean_over_samples(run, chunk)


def _seen(run: Run, found: Found, losses, values) -> Found:
    """With what a clean pass would have told, from the noisy ones of a chunk."""
    each = at_least_float32(losses).reshape(len(losses), -1)
    sizes = len(losses) * rms([values[s.name] for s in run.part.nodes])
    return found._replace(loss=each.mean(1).sum(), sizes=sizes)


# ------------------------------------------------------------------------------ faults


def find_fault(program, names, sizes, value, sigma) -> jax.Array:
    """int32: the position of the first node that is not finite, or a code.

    Args:
      names: of the nodes and holds whose sizes are known.
      sizes: rms of their values, (n,), in program order.
      value: the mean loss.
      sigma: {node: () or (channels,)}, {} if nothing is injected.
    """
    sites = [(i, s) for i, s in enumerate(program.sites) if s.name in names]
    places = np.array([i for i, _ in sites], np.int32)
    beyond = len(program.sites)

    def first(bad):
        return jnp.where(bad, places, beyond).min()

    safe = np.array([smallest(s.dtype) for _, s in sites]).astype(sizes.dtype) * sizes
    scale = least(sigma, [s.name for _, s in sites])
    small, broken = first(scale.astype(sizes.dtype) < safe), first(~jnp.isfinite(sizes))
    code = jnp.where(small < beyond, SMALL_SIGMA - small, NO_FAULT)
    code = jnp.where(jnp.isfinite(value), code, BAD_LOSS)
    code = jnp.where(broken < beyond, broken, code)
    return jnp.where((scale > 0).all(), code, BAD_SIGMA).astype(jnp.int32)
