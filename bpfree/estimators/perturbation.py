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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree import _jaxpr, locality, sampling
from bpfree import credit as _rules
from bpfree import program as _program
from bpfree._conv import canonical_convs
from bpfree.estimators import layerwise as _layerwise
from bpfree.estimators.derivative import DERIVATIVES, linearized
from bpfree.transform import (
    BAD_LOSS,
    BAD_SIGMA,
    NO_FAULT,
    Estimate,
    Estimator,
)

BASELINES = ("clean", "leave_one_out", "none")
PAIRINGS = ("clean", "noisy")
Sigma = float | jax.Array | Callable[[jax.Array], jax.Array]
Credit = _rules.Rule | Mapping[str, _rules.Rule] | None


class Settings(NamedTuple):
    """What a perturbation estimator is made of; see the constructors for the meaning."""

    loss_fn: _program.LossFn
    plan: sampling.Plan
    schedule: _layerwise.Schedule
    sigma: Sigma
    baseline: str
    pairing: str
    nodes: _program.NodeFilter
    derivative: str = "finite_difference"
    credit: Credit = None


class Run(NamedTuple):
    """One update's clean pass and what the noisy passes of one part need of it.

    Attributes:
      program: of the noisy passes; every node cuts it, also those that are not perturbed.
      clean: losses of the clean pass, (B,) or ().
      values: of its nodes.
      part: the nodes perturbed together, and their draws.
      share: of this part in the mean over all parts.
      known: values of the clean pass's equations, if they serve several parts.
    """

    settings: Settings
    program: _program.Program
    args: tuple
    key: jax.Array
    sigma: jax.Array
    clean: Any
    values: _program.NodeTree
    part: _layerwise.Part = _layerwise.NOTHING
    share: float = 1.0
    known: _jaxpr.Known | None = None

    @property
    def num_samples(self) -> int:
        return self.part.layout.num_draws * self.settings.plan.group


Signals = Callable[[Run], _program.NodeTree]
"""Run -> {node: estimate of d(mean loss) / dy}, of the nodes of its part."""


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
    layerwise=False,
    derivative="finite_difference",
    credit=None,
) -> Settings:
    """Check the arguments of a constructor; raises ValueError with the choices."""
    check_choice("baseline", baseline, BASELINES)
    check_choice("pairing", pairing, PAIRINGS)
    check_choice("derivative", derivative, DERIVATIVES)
    if sigma is not None:
        check_sigma(sigma)
    if antithetic:
        plan = sampling.antithetic(plan)
    if pairing == "noisy" and plan.score is None:
        raise ValueError(
            "pairing='noisy' needs noise with a density, whose score it uses; Rademacher "
            "signs have none. Use noise='gaussian' or pairing='clean'."
        )
    if derivative == "jvp" and (baseline, pairing, antithetic) != (
        "clean",
        "clean",
        False,
    ):
        raise ValueError(
            "derivative='jvp' measures no losses, so it takes no other baseline than "
            "'clean' and no antithetic pairs; and it is taken at the clean values, so "
            "pairing='clean'"
        )
    schedule = _layerwise.make_schedule(
        plan, num_samples, chunk_size, sharding, layerwise
    )
    fewest = min(layout.num_draws for layout in schedule.layouts)
    if baseline == "leave_one_out" and fewest < 2:
        raise ValueError(
            "baseline='leave_one_out' needs at least two draws, here "
            f"num_samples >= {2 * plan.group}"
        )
    if not (nodes is None or callable(nodes) or isinstance(nodes, str)):
        nodes = frozenset(nodes)  # a generator would serve the first trace only
    return Settings(
        loss_fn, plan, schedule, sigma, baseline, pairing, nodes, derivative, credit
    )


def make_estimator(settings: Settings, signals: Signals | None = None) -> Estimator:
    """The estimator of the module docstring, or with other signals (clean pairing)."""

    def estimate(key, params, batch, state, wanted=None) -> Estimate:
        noise_key, loss_key = jax.random.split(key)
        args = _program.arguments(settings.loss_fn, params, batch, loss_key)
        program = _program.trace(
            settings.loss_fn,
            params,
            batch,
            loss_key,
            settings.nodes,
            loss_axes=1 if settings.credit is None else 2,
        )
        sigma = sigma_at(settings, state.count)
        locality.check(program, args, wanted)
        _rules.check_names(settings.credit, program.nodes)
        out, values, pull = _program.cut_vjp(program, args)
        clean, aux = _program.split_aux(out)
        noise_key = _jaxpr.fold_in_shards(noise_key, clean)
        noisy = program.holding(values)
        runs = _runs(Run(settings, noisy, args, noise_key, sigma, clean, values))
        if settings.pairing == "clean":
            found: _program.NodeTree = {}
            for run in runs:
                found |= (signals or _signals)(run)
            gradient = pull(found)
        else:
            gradient = _noisy_gradient(runs)
        fault = find_fault(program, values, clean, sigma)
        return Estimate(gradient, clean.mean().astype(jnp.float32), aux, fault)

    return Estimator(lambda params: (), estimate)


def _runs(run: Run) -> list[Run]:
    """One run for each part: all nodes, or each of them."""
    parts = _layerwise.parts(run.settings.schedule, run.program)
    several = len(parts) > 1
    known = _program.clean_values(run.program, run.args) if several else None
    share = 1 / len(parts)
    return [run._replace(part=part, share=share, known=known) for part in parts]


def sigma_at(settings: Settings, step) -> jax.Array:
    """sigma of this step; an exact derivative has no step size."""
    sigma = settings.sigma if settings.derivative == "finite_difference" else 1.0
    value = jnp.asarray(sigma(step) if callable(sigma) else sigma, jnp.float32)
    if value.ndim:
        raise ValueError(f"sigma must be one number, got shape {value.shape}")
    return value


# ---------------------------------------------------------------------- the two pairings


def _signals(run: Run) -> _program.NodeTree:
    """Clean pairing: noise weighted by centred losses, summed over the samples."""
    losses = sampling.each(run.part.layout, _losses(run))
    weigh = _weigh(run)

    def chunk(draws):
        noise = draw(run, draws)
        deltas = jax.tree.map(lambda z: run.sigma * z, noise)
        weights = weigh(draws, lambda: losses(deltas))
        return _credit(run, weights, noise, sampling.weighted_sum), ()

    return mean_over_samples(run, chunk)


def _losses(run: Run):
    """`deltas -> losses`, or their first-order change."""
    losses = _program.perturbed(run.program, run.args, run.part.names, run.known)
    if run.settings.derivative == "jvp":
        return linearized(losses, run.part.nodes)
    return losses


def _noisy_gradient(runs: list[Run]):
    """Noisy pairing: one vjp per chunk, outside the vmap over its samples."""
    parts = [_noisy_part(run) for run in runs]
    total = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *parts)
    params = runs[0].args[0]
    return jax.tree.map(lambda g, p: g.astype(jnp.result_type(p)), total, params)


def _noisy_part(run: Run):
    weigh = _weigh(run)

    def chunk(draws):
        noise = draw(run, draws)
        deltas = jax.tree.map(lambda z: run.sigma * z, noise)

        def surrogate(params):
            def one(deltas):
                args = (params, *run.args[1:])
                out, values = _program.cut(run.program, args, deltas)
                mine = {name: values[name] for name in deltas}
                return _program.split_aux(out)[0], mine

            losses, values = sampling.each(run.part.layout, one)(deltas)
            return (losses, values), losses

        (_, values), vjp, losses = jax.vjp(surrogate, run.args[0], has_aux=True)
        weights = weigh(draws, lambda: losses)
        behind_last = jnp.full_like(losses, run.share / run.clean.size)
        terms = _credit(run, weights, noise, jnp.multiply)
        terms = jax.tree.map(lambda t, y: t.astype(y.dtype), terms, values)
        gradient = canonical_convs(vjp)((behind_last, terms))[0]
        return jax.tree.map(at_least_float32, gradient), ()

    return mean_over_samples(run, chunk)


def mean_over_samples(run: Run, chunk):
    """Added up first and divided last, in float32: half precision loses neither."""
    sums, _ = sampling.sum_over_draws(chunk, run.part.layout)
    return jax.tree.map(lambda total: total / run.num_samples, sums)


def at_least_float32(x: jax.Array) -> jax.Array:
    narrow = jnp.finfo(x.dtype).bits < 32
    return x.astype(jnp.float32) if narrow else x


def draw(run: Run, draws) -> _program.NodeTree:
    """Noise of a chunk of draws, samples in front: {name: (c * G, *node shape)}."""
    return sampling.draw_chunk(run.settings.plan, run.key, draws, run.part.nodes)


def _credit(run: Run, weights, noise, rule) -> _program.NodeTree:
    """{name: rule(weights / (B sigma), score)} of the nodes of the part."""
    score = run.settings.plan.score or (lambda noise: noise)
    weights = weights / (run.clean.size * run.sigma)
    beside = _rules.weights(run.settings.credit, weights, run.part.nodes)
    return {name: rule(w, score(noise[name])) for name, w in beside.items()}


# --------------------------------------------------------------------------- baselines


def _weigh(run: Run):
    """`(draws, losses of the chunk) -> centred losses`, (samples, B) or (samples,)."""
    baseline = run.settings.baseline
    if baseline == "leave_one_out":
        table = _left_out(run)
        return lambda draws, losses: table[draws].reshape(-1, *run.clean.shape)
    measured = run.settings.derivative == "finite_difference"
    centre = run.clean[None] if baseline == "clean" and measured else 0.0
    return lambda draws, losses: (losses() - centre).astype(jnp.float32)


def _left_out(run: Run) -> jax.Array:
    """L_k minus the mean loss of all other draws, for every sample: (draws, G, B).

    The whole draw is left out, not the sample alone: its members share noise, and a
    baseline that depends on a sample's noise would bias its term. Takes the losses of all
    samples before the first is credited, so noise is drawn twice.
    """
    losses = sampling.each(run.part.layout, _losses(run))
    group = run.settings.plan.group

    def chunk(draws):
        deltas = jax.tree.map(lambda z: run.sigma * z, draw(run, draws))
        table = losses(deltas) - run.clean[None]  # a shift, for rounding
        return (), table.reshape(-1, group, *run.clean.shape).astype(jnp.float32)

    table = sampling.sum_over_draws(chunk, run.part.layout)[1]
    of_draw = table.sum(1, keepdims=True)
    others = (of_draw.sum(0, keepdims=True) - of_draw) / (table.shape[0] * group - group)
    return table - others


# ------------------------------------------------------------------------------ checks


def find_fault(program, values, clean, sigma) -> jax.Array:
    """int32: the position of the first node that is not finite, or a code."""
    code = jnp.where(jnp.isfinite(clean).all(), NO_FAULT, BAD_LOSS)
    for position, site in reversed(list(enumerate(program.sites))):
        if site.name in values:
            finite = jnp.isfinite(values[site.name]).all()
            code = jnp.where(finite, code, position)
    return jnp.where(sigma > 0, code, BAD_SIGMA).astype(jnp.int32)


def check_choice(what: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{what}={value!r} is unknown; choose one of {choices}")


def check_sigma(sigma: Sigma) -> None:
    """Concrete values are checked here; traced ones set a fault in the state."""
    if callable(sigma):
        return
    if isinstance(sigma, str) or jnp.ndim(sigma):
        raise ValueError(f"sigma must be one number or a schedule, got {sigma!r}")
    try:
        sigma = float(sigma)
    except jax.errors.ConcretizationTypeError:
        return
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma={sigma} must be a positive number")
