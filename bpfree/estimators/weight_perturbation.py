"""Weight perturbation (WP): SPSA and evolution strategies.

Two loops over the samples; the second draws the same noise again:

    L_k      = mean loss at theta + sigma z_k                  forward passes
    u        = shape(L - c)                                    K numbers
    gradient = 1 / (K sigma) sum_k u_k z_k                     noise, and no pass
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from bpfree import _jaxpr, lowrank, sampling
from bpfree import program as _program
from bpfree.estimators import perturbation, weight_noise
from bpfree.transform import (
    BAD_LOSS,
    BAD_SIGMA,
    NO_FAULT,
    Estimate,
    Estimator,
    EstimatorTransformation,
    transformation,
)


def weight_perturbation(
    loss_fn: _program.LossFn,
    *,
    num_samples: int = 32,
    sigma: perturbation.Sigma = 0.01,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: str = "clean",
    shaping: str | None = None,
    rank: int | None = None,
    noise: str = "rademacher",
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
    smoothed over the weights, at any sigma. With `shaping` the scale of the loss is lost
    and only a direction is left.

    Memory does not depend on num_samples: noise is drawn again for the sum.

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
      baseline: c is "clean" (the loss at theta), "leave_one_out" (mean of the other
        draws) or "none".
      shaping: None; "centred_ranks", from -1/2 to 1/2, where equal losses share a rank
        and those that are not finite the worst; "standardise", to mean 0 and variance 1.
      rank: None for dense noise, or r for z = A B^T / sqrt(r) wherever it takes fewer
        numbers than the parameter. Products x (W + sigma z) are evaluated as x W + sigma
        (x A) B^T / sqrt(r), the first term once (see `bpfree.lowrank`).
      noise: "rademacher" (32 signs to a random word) or "gaussian"; of A and B with rank.
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
    """
    perturbation.check_choice("noise", noise, tuple(weight_noise.PLANS))
    perturbation.check_choice("baseline", baseline, perturbation.BASELINES)
    perturbation.check_choice("shaping", shaping, tuple(SHAPING))
    perturbation.check_sigma(sigma)
    weight_noise.check_rank(rank)
    plan = weight_noise.PLANS[noise]
    pairs = sampling.antithetic(plan) if antithetic else plan
    chunk_size = pairs.group * _CHUNK[rank is None] if chunk_size is None else chunk_size
    layout = sampling.make_layout(pairs, num_samples, chunk_size, sharding)
    if (baseline == "leave_one_out" or shaping) and layout.num_draws < 2:
        raise ValueError(
            "baseline='leave_one_out' and shaping need at least two draws, here "
            f"num_samples >= {2 * pairs.group}"
        )
    signs = jnp.asarray([1.0, -1.0][: pairs.group], jnp.float32)

    def estimate(key, params, batch, state, wanted=None) -> Estimate:
        noise_key, loss_key = jax.random.split(key)
        args = _program.arguments(loss_fn, params, batch, loss_key)
        clean, aux = _program.split_aux(loss_fn(*args))
        _program.check_losses(clean)
        scale = XX
        noise_key = _jaxpr.fold_in_shards(noise_key, clean)
        moved = weight_noise.moved(loss_fn, args, wanted)

        def draw(index):
            return weight_noise.draw(plan, rank, noise_key, index, moved)

        def differences(draws):
            return (), jax.vmap(lambda k: change(draw(k), signs * scale))(draws)

        def credit(draws):
            return weight_noise.credit(weights[draws], jax.vmap(draw)(draws)), ()

        change = _change(loss_fn, args, clean, jax.eval_shape(draw, layout.num_draws))
        losses = sampling.sum_over_draws(differences, layout)[1]
        shaped = SHAPING[shaping](_centred(baseline, losses, clean))
        weights = shaped @ signs / (num_samples * scale)
        sums = sampling.sum_over_draws(credit, layout)[0]
        gradient = weight_noise.as_gradient(params, _jaxpr.sum_shards(sums, clean))
        fault = jnp.where(jnp.isfinite(clean).all(), NO_FAULT, BAD_LOSS)
        fault = jnp.where(scale > 0, fault, BAD_SIGMA).astype(jnp.int32)
        return Estimate(gradient, clean.mean().astype(jnp.float32), aux, fault)

    return transformation(
        Estimator(lambda params: (), estimate), loss_fn, seed, example_batch
    )


_CHUNK = {True: 1, False: 8}  # draws side by side: dense noise, factors


def _change(loss_fn, args, clean, noise):
    """`(noise, scales (G,)) -> (G,)`: mean loss at params + scale noise, less the clean one.

    What no noise reaches is computed here: with factors, the first layer's x W.
    """

    def one(noise, scale):
        def mean_loss(params):
            losses = _program.split_aux(loss_fn(params, *args[1:]))[0]
            return (losses.mean() - clean.mean()).astype(jnp.float32)

        return lowrank.evaluate(mean_loss, weight_noise.added(args[0], noise, scale))

    hoisted = _jaxpr.hoist(one, noise, jax.ShapeDtypeStruct((), jnp.float32))
    return jax.vmap(hoisted, (None, 0))


# ----------------------------------------------------- from losses to weights: (draws, G)


def _centred(baseline: str, losses: jax.Array, clean: jax.Array) -> jax.Array:
    """L - c, from losses that have the clean one subtracted."""
    if baseline == "none":
        return losses + clean.mean().astype(losses.dtype)
    if baseline == "clean":
        return losses
    of_draw = losses.sum(1, keepdims=True)
    return losses - (of_draw.sum(0, keepdims=True) - of_draw) / (
        losses.size - losses.shape[1]
    )


def _centred_ranks(losses: jax.Array) -> jax.Array:
    finite = jnp.where(jnp.isfinite(losses), losses, jnp.inf).ravel()
    order = jnp.sort(finite)
    below = jnp.searchsorted(order, finite, side="left")
    not_above = jnp.searchsorted(order, finite, side="right")
    rank = (below + not_above - 1).astype(jnp.float32) / 2
    return (rank / (losses.size - 1) - 0.5).reshape(losses.shape)


def _standardised(losses: jax.Array) -> jax.Array:
    spread = losses.std()
    return (losses - losses.mean()) / jnp.where(spread > 0, spread, 1.0)


SHAPING: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda losses: losses,
    "centred_ranks": _centred_ranks,
    "standardise": _standardised,
}
