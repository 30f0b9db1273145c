"""The arithmetic that all node-perturbation-like estimators share.

With K samples, node noise eps_k, loss L_kb of example b under sample k, baseline c_kb and
score s (eps itself for unit Gaussian noise),

    signal = 1 / (B K sigma) sum_k (L_kb - c_kb) s(eps_k)      per node and example
    gradient = pull(signal)                                    one product per layer

"clean" pairing lets the signal meet the clean inputs of each layer, once, after all
samples; "noisy" pairing lets every sample's term meet that sample's own noisy inputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bpfree import _jaxpr, locality, sampling
from bpfree import program as _program
from bpfree._conv import canonical_convs
from bpfree.estimators import sigma as _sigma
from bpfree.estimators.sigma import Sigma
from bpfree.resolution import at_least_float32, rms, too_small
from bpfree.transform import (
    BAD_LOSS,
    BAD_SIGMA,
    NO_FAULT,
    SMALL_SIGMA,
    Estimate,
    Estimator,
    EstimatorTransformation,
    transformation,
)

BASELINES = ("clean", "leave_one_out", "batch", "none")
PAIRINGS = ("clean", "noisy")

Encode = Callable[[jax.Array], jax.Array] | None


class Settings(NamedTuple):
    """What a perturbation estimator is made of; see the constructors for the meaning."""

    loss_fn: _program.LossFn
    plan: sampling.Plan
    layout: sampling.Layout
    sigma: Sigma
    baseline: str
    pairing: str
    nodes: _program.NodeFilter
    sigma_optimizer: optax.GradientTransformation | None = None
    encode_weights: Encode = None
    encode_signals: Encode = None

    @property
    def num_samples(self) -> int:
        return self.layout.num_draws * self.plan.group


class _Pass(NamedTuple):
    """One update, and what its noisy passes need of the clean one.

    Attributes:
      sigma: {node: () or (channels,)}.
      clean: losses of the clean pass, (B,) or (); None if there is none.
    """

    settings: Settings
    program: _program.Program
    args: tuple
    key: jax.Array
    sigma: _program.NodeTree
    clean: jax.Array | None


class _Found(NamedTuple):
    """What a chunk of samples adds up to, and after division by K the mean over all.

    Attributes:
      gradient: signals {node: ...} (clean pairing), or params-shaped (noisy).
      slopes: {node: dJ / d log sigma}; {} unless sigma is learned.
      loss: of the noisy passes, (); () where a clean pass tells it.
      sizes: {node: rms of its noisy values}; {} likewise.
    """

    gradient: Any
    slopes: _program.NodeTree
    loss: Any = ()
    sizes: Any = {}


def build(loss_fn, *, seed, example_batch, **arguments: Any) -> EstimatorTransformation:
    """The transformation that a constructor returns; `arguments` of `make_settings`."""
    settings = make_settings(loss_fn, **arguments)
    estimator = make_estimator(settings, example_batch)
    return transformation(estimator, loss_fn, seed, example_batch)


def make_settings(
    loss_fn,
    *,
    plan,
    num_samples,
    sigma,
    chunk_size,
    antithetic,
    baseline,
    pairing,
    nodes,
    sharding,
    **more,
) -> Settings:
    """Check the arguments of a constructor; raises ValueError with the choices."""
    check_choice("baseline", baseline, BASELINES)
    check_choice("pairing", pairing, PAIRINGS)
    _sigma.check(sigma)
    if antithetic:
        plan = sampling.antithetic(plan)
    if pairing == "noisy" and plan.score is None:
        raise ValueError(
            "pairing='noisy' needs noise with a density, whose score it uses; Rademacher "
            "signs have none. Use noise='gaussian' or pairing='clean'."
        )
    layout = sampling.make_layout(plan, num_samples, chunk_size, sharding)
    if baseline == "leave_one_out" and layout.num_draws < 2:
        raise ValueError(
            "baseline='leave_one_out' needs at least two draws, here "
            f"num_samples >= {2 * plan.group}"
        )
    if not (nodes is None or callable(nodes) or isinstance(nodes, str)):
        nodes = frozenset(nodes)  # a generator would serve the first trace only
    return Settings(loss_fn, plan, layout, sigma, baseline, pairing, nodes, **more)


def make_estimator(settings: Settings, example_batch: Any = None) -> Estimator:
    """The estimator of the module docstring."""

    def init(params):
        sites = lambda: _example_nodes(settings, params, example_batch)  # noqa: E731
        return _sigma.init(settings.sigma, settings.sigma_optimizer, sites)

    def estimate(key, params, batch, state, wanted=None) -> Estimate:
        noise_key, loss_key = jax.random.split(key)
        args = _program.arguments(settings.loss_fn, params, batch, loss_key)
        program = _program.trace(
            settings.loss_fn, params, batch, loss_key, settings.nodes
        )
        _check(settings, program)
        locality.check(program, args, wanted)
        sigma = _sigma.current(settings.sigma, state.inner, state.count, program.nodes)
        noise_key = _jaxpr.fold_in_shards(noise_key, program.losses)
        run = _Pass(settings, program, args, noise_key, sigma, None)
        if _is_forward_only(run):
            aux, found = None, _noisy(run)
            gradient, value, sizes = found.gradient, found.loss, found.sizes
        else:
            out, values, pull = _program.cut_vjp(program, args)
            clean, aux = _program.split_aux(out)
            run = run._replace(program=program.holding(values), clean=clean)
            found = _clean(run) if settings.pairing == "clean" else _noisy(run)
            gradient = found.gradient
            if settings.pairing == "clean":
                gradient = pull(_encoded(settings.encode_signals, gradient))
            value = clean.mean()
            sizes = {name: rms(y) for name, y in values.items()}
        fault = _find_fault(program, sizes, value, sigma)
        inner = _sigma.updated(state.inner, found.slopes, settings.sigma_optimizer)
        return Estimate(gradient, value.astype(jnp.float32), aux, fault, inner)

    return Estimator(init, estimate)


def _is_forward_only(run: _Pass) -> bool:
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
    loss_fn, nodes = settings.loss_fn, settings.nodes
    return _program.trace(loss_fn, params, example_batch, key, nodes).nodes


# ---------------------------------------------------------------------- the two pairings


def _clean(run: _Pass) -> _Found:
    """Clean pairing: noise weighted by centred losses, summed over the samples."""
    losses = _program.perturbed(run.program, run.args)
    weigh = _weigh(run)

    def chunk(draws):
        noise = _draw(run, draws)
        weights = weigh(draws, lambda: jax.vmap(losses)(_deltas(run, noise)))
        signals = _credit(run, weights, noise, sampling.credit)
        return _Found(signals, _slopes(run, weights, noise)), ()

    return _mean_over_samples(run, chunk)


def _noisy(run: _Pass) -> _Found:
    """Noisy pairing: one vjp per chunk, outside the vmap over its samples."""
    weigh = _weigh(run)

    def chunk(draws):
        noise = _draw(run, draws)
        deltas = _deltas(run, noise)

        def surrogate(params):
            def one(deltas):
                args = (params, *run.args[1:])
                out, values = _program.cut(run.program, args, deltas)
                return _program.split_aux(out)[0], values

            losses, values = jax.vmap(one)(deltas)
            return (losses, values), (losses, values)

        _, vjp, (losses, values) = jax.vjp(surrogate, run.args[0], has_aux=True)
        weights = weigh(draws, lambda: losses)
        behind_last = jnp.full_like(losses, 1 / run.program.losses.size)
        terms = _credit(run, weights, noise, sampling.per_sample)
        terms = jax.tree.map(lambda t, y: t.astype(y.dtype), terms, values)
        gradient = canonical_convs(vjp)((behind_last, terms))[0]
        gradient = jax.tree.map(at_least_float32, gradient)
        found = _Found(gradient, _slopes(run, weights, noise))
        return (found if run.clean is not None else _seen(found, losses, values)), ()

    found = _mean_over_samples(run, chunk)
    cast = lambda g, p: g.astype(jnp.result_type(p))  # noqa: E731
    return found._replace(gradient=jax.tree.map(cast, found.gradient, run.args[0]))


def _seen(found: _Found, losses, values) -> _Found:
    """With what a clean pass would have told, from the noisy ones of a chunk."""
    each = at_least_float32(losses).reshape(len(losses), -1)
    sizes = {name: len(y) * rms(y) for name, y in values.items()}
    return found._replace(loss=each.mean(1).sum(), sizes=sizes)


def _mean_over_samples(run: _Pass, chunk):
    """Added up first and divided last, in float32: half precision loses neither."""
    sums, _ = sampling.sum_over_draws(chunk, run.settings.layout)
    return jax.tree.map(lambda total: total / run.settings.num_samples, sums)


def _draw(run: _Pass, draws) -> _program.NodeTree:
    """Noise of a chunk of draws, samples in front: {name: (c * G, *node shape)}."""

    def one(draw):
        return sampling.draw_noise(run.settings.plan, run.key, draw, run.program.nodes)

    return jax.tree.map(lambda z: z.reshape(-1, *z.shape[2:]), jax.vmap(one)(draws))


def _deltas(run: _Pass, noise) -> _program.NodeTree:
    return {name: _sigma.times(run.sigma[name], z) for name, z in noise.items()}


def _credit(run: _Pass, weights, noise, rule) -> _program.NodeTree:
    """{name: weights * score / (B sigma)}, combined by `rule` (see `sampling`)."""
    score = run.settings.plan.score or (lambda noise: noise)
    weights = weights / run.program.losses.size
    return {
        s.name: _sigma.times(
            1 / run.sigma[s.name], rule(weights, score(noise[s.name]), s.batch_axis)
        )
        for s in run.program.nodes
    }


def _slopes(run: _Pass, weights, noise) -> _program.NodeTree:
    if run.settings.sigma_optimizer is None:
        return {}
    score, nodes = run.settings.plan.score, run.program.nodes
    return _sigma.slopes(weights / run.program.losses.size, noise, score, nodes)


def _encoded(encode: Encode, tree):
    return tree if encode is None else jax.tree.map(encode, tree)


# --------------------------------------------------------------------------- baselines


def _weigh(run: _Pass):
    """`(draws, losses of the chunk) -> centred losses`, (samples, B) or (samples,)."""
    baseline, encode = run.settings.baseline, run.settings.encode_weights
    if baseline == "leave_one_out":
        table = _left_out(run)
        return lambda draws, losses: _encoded(
            encode, table[draws].reshape(-1, *run.program.losses.shape)
        )

    def weigh(draws, losses):
        found = losses()
        if baseline == "clean":
            found = found - run.clean[None]
        if baseline == "batch":
            found = found - _others(found)
        return _encoded(encode, found.astype(jnp.float32))

    return weigh


def _others(losses: jax.Array) -> jax.Array:
    """For each example the mean loss of all others in the same sample; (K, B).

    With its own loss in the mean, an example's term would shrink by 1 - 1/B.
    """
    total = losses.sum(1, keepdims=True)
    return (total - losses) / (losses.shape[1] - 1)


def _left_out(run: _Pass) -> jax.Array:
    """L_k minus the mean loss of all other draws, for every sample: (draws, G, B).

    The whole draw is left out, not the sample alone: its members share noise, and a
    baseline that depends on a sample's noise would bias its term. Takes the losses of all
    samples before the first is credited, so noise is drawn twice.
    """
    losses = _program.perturbed(run.program, run.args)
    group = run.settings.plan.group

    def chunk(draws):
        deltas = _deltas(run, _draw(run, draws))
        table = jax.vmap(losses)(deltas) - run.clean[None]  # a shift, for rounding
        return (), table.reshape(-1, group, *run.clean.shape).astype(jnp.float32)

    table = sampling.sum_over_draws(chunk, run.settings.layout)[1]
    of_draw = table.sum(1, keepdims=True)
    others = (of_draw.sum(0, keepdims=True) - of_draw) / (table.shape[0] * group - group)
    return table - others


# ------------------------------------------------------------------------------ checks


def _check(settings: Settings, program: _program.Program) -> None:
    _sigma.check_resolution(settings.sigma, program)
    if settings.baseline != "batch":
        return
    shared = [s.name for s in program.nodes if s.batch_axis is None]
    if shared or (program.batch_size or 1) < 2:
        raise ValueError(
            "baseline='batch' compares the examples of a batch: it needs two or more, "
            f"each with noise of its own. Here the batch size is {program.batch_size}, "
            f"and the noise of {shared} is shared by the batch."
        )


def _find_fault(program, sizes, value, sigma) -> jax.Array:
    """int32: the position of the first node that is not finite, or a code."""
    code = jnp.int32(NO_FAULT)
    sites = [(i, s) for i, s in enumerate(program.sites) if s.name in sizes]
    for position, site in reversed(sites):
        if site.name in sigma:
            small = too_small(site, sigma[site.name], sizes[site.name])
            code = jnp.where(small, SMALL_SIGMA - position, code)
    code = jnp.where(jnp.isfinite(value), code, BAD_LOSS)
    for position, site in reversed(sites):
        code = jnp.where(jnp.isfinite(sizes[site.name]), code, position)
    positive = jnp.stack([(s > 0).all() for s in sigma.values()]).all()
    return jnp.where(positive, code, BAD_SIGMA).astype(jnp.int32)


def check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what}={value!r} is unknown; choose one of {choices}")
