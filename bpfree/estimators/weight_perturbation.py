"""Weight perturbation (WP): SPSA and evolution strategies.

    L_k      = mean loss at theta + sigma z_k                  forward passes
    u        = baseline(L)                                     K numbers
    gradient = 1 / (K sigma) sum_k u_k z_k                     noise, and no pass

in one loop over the samples; or, where u needs all losses at once, in two, of which the
second draws the same noise again.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from bpfree.choices import Noise, check_choice
from bpfree.estimators import weight_noise
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import BAD_SIGMA, NO_FAULT, Estimate
from bpfree.estimators.objective import of_losses
from bpfree.estimators.settings import check_draws, find_baseline
from bpfree.program import interpreter, lowrank, rewriting, stops, tags
from bpfree.program.trace import LossFn, split_aux
from bpfree.sampling import loop
from bpfree.sampling.baselines import Baseline, Table, weigher
from bpfree.sampling.noise import Plan, antithetic_plan
from bpfree.sampling.scale import Number, check_number, scale_at

BaselineChoice = (
    Literal["clean", "leave_one_out", "none", "standardise", "centred_ranks"]
    | Table
    | Baseline
)


def weight_perturbation(
    loss_fn: LossFn,
    *,
    num_samples: int = 32,
    sigma: Number = 0.01,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: BaselineChoice = "clean",
    rank: int | None = None,
    noise: Noise = "rademacher",
    hold_stop_gradient: bool = True,
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Weight perturbation: credit the parameters with the change of the mean loss.

    .. math::

        \hat g = \frac{1}{K\sigma} \sum_{k=1}^{K} \big(\bar L(\theta + \sigma z_k) - c
        \big)\, z_k, \qquad E[z] = 0, \; E[z z^T] = I

    It needs no nodes and no derivative of anything. All examples share the noise of a
    sample, so that its variance grows with the number of parameters and does not fall
    with the batch: `node_perturbation` points better at equal cost wherever it applies.

    Contract: aligned. The expectation is the gradient of the mean clean loss with an
    error O(sigma^2); for noise="gaussian" and rank=None it is the gradient of the loss
    smoothed over the weights, at any sigma.

    Memory does not depend on num_samples, but for a few numbers a sample with a baseline
    that takes all losses at once: noise is never stored, there it is drawn again.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`. Marks in
        it are ignored: statistics that `bpfree.hold` keeps in other estimators move.
      num_samples: K, forward passes of the batch at perturbed parameters.
      sigma: standard deviation of the noise in units of the parameters: a number, or a
        schedule of the step. Too small loses the loss difference to rounding.
      seed: int or typed PRNG key.
      chunk_size: samples evaluated side by side (on each device); sets memory and speed,
        not the result. Default 1, and 8 with `rank`.
      antithetic: use pairs z, -z; num_samples must be even.
      baseline: as in `bpfree.node_perturbation`, but "batch", for mean losses: the
        table is (draws, samples of a draw).
      rank: None for dense noise, or r for z = A B^T / sqrt(r) wherever it takes fewer
        numbers than the parameter. Products x (W + sigma z) are evaluated as x W + sigma
        (x A) B^T / sqrt(r), the first term once (see `bpfree.program.lowrank`).
      noise: "rademacher" (32 signs to a random word) or "gaussian"; of A and B with rank.
      hold_stop_gradient: as in `bpfree.node_perturbation`. With False the program is not
        read at all.
      sharding: NamedSharding whose first axis spreads the samples over devices.
      example_batch: batch or ShapeDtypeStructs; needed if loss_fn returns aux.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count, rank or sigma, losses that are not (B,).

    Reference: Spall, "Multivariate stochastic approximation using a simultaneous
    perturbation gradient approximation", IEEE TAC 37 (1992); Salimans et al., "Evolution
    strategies as a scalable alternative to reinforcement learning", arXiv:1703.03864;
    seed replay: Malladi et al., "Fine-tuning language models with just forward passes",
    NeurIPS 2023; rank r: Sarkar et al., "Evolution strategies at the hyperscale",
    arXiv:2511.16652.

    Example:
        >>> tx = bpfree.weight_perturbation(loss_fn, num_samples=4, rank=1)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    settings = make_settings(
        num_samples,
        sigma,
        chunk_size,
        antithetic,
        baseline,
        rank,
        noise,
        sharding,
        hold_stop_gradient,
    )

    def estimate(key, args, state, wanted) -> Estimate:
        run = begin(loss_fn, settings, key, args, state, wanted)

        def credit(draws):
            noise = jax.vmap(run.draw)(draws)
            weights = run.weigh(draws, lambda: run.losses(noise))
            return weight_noise.credit(weights @ run.signs, noise), ()

        sums = loop.sum_over_draws(credit, run.together)[0]
        sums = loop.mean_of(sums, num_samples * run.scale)
        gradient = weight_noise.as_gradient(args[0], tags.sum_shards(sums, run.clean))
        return Estimate(gradient, run.clean, run.aux, run.fault)

    return transformation(of_losses(loss_fn, estimate), loss_fn, seed, example_batch)


class Settings(NamedTuple):
    """The arguments of `weight_perturbation`, checked; `pairs` is the plan of a draw."""

    plan: Plan
    pairs: Plan
    layout: loop.Layout
    compared: Baseline
    rank: int | None
    sigma: Number
    hold_stop_gradient: bool


def make_settings(
    num_samples,
    sigma,
    chunk_size,
    antithetic,
    baseline,
    rank,
    noise,
    sharding,
    hold_stop_gradient=True,
) -> Settings:
    """Raises ValueError for what cannot be."""
    check_choice("noise", noise, Noise)
    compared = find_baseline(baseline)
    if compared.across:
        raise ValueError(
            "baseline='batch' compares examples, which share the noise of parameters"
        )
    check_number(sigma)
    weight_noise.check_rank(rank)
    plan = weight_noise.PLANS[noise]
    pairs = antithetic_plan(plan) if antithetic else plan
    layout = weight_noise.make_layout(pairs, rank, num_samples, chunk_size, sharding)
    if compared.whole:
        check_draws(layout.num_draws, pairs)
    return Settings(plan, pairs, layout, compared, rank, sigma, hold_stop_gradient)


class Run(NamedTuple):
    """One update after its clean pass.

    Attributes:
      draw: index -> noise of the parameters.
      losses: noise of draws -> (draws, samples of a draw).
      weigh: (draws, () -> their losses) -> weights of the same shape.
      signs: of the samples of a draw, (G,).
      scale: sigma of this step.
      together: the loop that credits.
    """

    draw: Callable[[jax.Array], weight_noise.Noise]
    losses: Callable[[weight_noise.Noise], jax.Array]
    weigh: Callable[..., jax.Array]
    signs: jax.Array
    scale: jax.Array
    together: loop.Layout
    clean: jax.Array
    aux: Any

    @property
    def fault(self) -> jax.Array:
        return jnp.where(self.scale > 0, NO_FAULT, BAD_SIGMA)


def begin(loss_fn, settings: Settings, key, args, state, wanted) -> Run:
    plan, pairs, layout, compared, rank, sigma, held = settings
    traced = rewriting.to_jaxpr(loss_fn, args)
    loss_fn = rewriting.evaluator(traced)
    clean, aux = split_aux(loss_fn(*args))
    noisy = stops.held(loss_fn, args, traced) if held else loss_fn
    scale = scale_at(sigma, state.count)
    signs = jnp.asarray([1.0, -1.0][: pairs.group], jnp.float32)
    moved = weight_noise.moved(traced, args, wanted)
    together = weight_noise.credited_together(layout, rank, moved)
    key = tags.fold_in_shards(key, clean)

    def draw(index):
        return weight_noise.draw(plan, rank, key, index, moved)

    change = _change(noisy, args, clean, jax.eval_shape(draw, layout.num_draws), layout)
    centre = jnp.float32(0) if compared.clean else clean.mean().astype(jnp.float32)

    def losses(noise):
        return centre + loop.in_chunks(layout, lambda z: change(z, signs * scale))(noise)

    def evaluate(draws):
        return losses(jax.vmap(draw)(draws))

    weigh = weigher(compared, layout, evaluate)
    return Run(draw, losses, weigh, signs, scale, together, clean, aux)


def _change(loss_fn, args, clean, noise, layout):
    """`(noise, scales (G,)) -> (G,)`: mean loss at params + scale noise, less the clean.

    What no noise reaches is computed here: with factors, the first layer's x W.
    """

    def one(noise, scale):
        def mean_loss(params):
            losses = split_aux(loss_fn(params, *args[1:]))[0]
            return (losses.mean() - clean.mean()).astype(jnp.float32)  # for rounding

        return lowrank.evaluate(mean_loss, weight_noise.added(args[0], noise, scale))

    hoisted = interpreter.hoist(one, noise, jax.ShapeDtypeStruct((), jnp.float32))
    return jax.vmap(loop.own_kernels(layout, hoisted), (None, 0))
