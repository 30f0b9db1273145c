"""Weight perturbation (WP): SPSA and evolution strategies.

    L_k      = mean loss at theta + sigma z_k                  forward passes
    u        = baseline(L)                                     K numbers
    gradient = 1 / (K sigma) sum_k u_k z_k                     noise, and no pass

in one loop over the samples; or, where u needs all losses at once, in two, of which the
second draws the same noise again.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding

from bpfree.choices import Noise
from bpfree.estimators import weight_noise
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import of_losses
from bpfree.estimators.weight_runs import BaselineChoice, begin, make_settings
from bpfree.program import tags
from bpfree.program.trace import LossFn
from bpfree.sampling.loop import mean_of, sum_over_draws
from bpfree.sampling.scale import Number


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
        it are ignored: statistics that `bpfree.hold` keeps in other estimators move, but
        for whole numbers (actions).
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
            credited = weight_noise.credit(weights @ run.signs, noise)
            return (credited, (weights**2).sum()), ()

        sums, squares = sum_over_draws(credit, run.together)[0]
        sums = mean_of(sums, num_samples * run.scale)
        gradient = weight_noise.as_gradient(args[0], tags.sum_shards(sums, run.clean))
        return Estimate(gradient, run.clean, run.aux, run.fault(squares / num_samples))

    return transformation(of_losses(loss_fn, estimate), loss_fn, seed, example_batch)
