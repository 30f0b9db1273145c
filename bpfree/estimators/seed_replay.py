"""Weight perturbation and plain SGD in one: the parameters move where they stand.

    u        = baseline(L)                                 K numbers, of forward passes
    theta   <- theta - lr / (K sigma) u_k z_k              for k = 1, ..., K

The second loop draws each z_k again from its key. There is no gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.choices import Noise
from bpfree.estimators import weight_noise
from bpfree.estimators.base import EstimatorState, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import of_losses
from bpfree.estimators.weight_runs import BaselineChoice, begin, make_settings
from bpfree.program import tags
from bpfree.program.trace import LossFn
from bpfree.sampling.loop import sum_over_draws
from bpfree.sampling.scale import Number, check_number


class InPlace(NamedTuple):
    """An estimator and its optimiser in one, see `seed_replay`.

    Attributes:
      init: `params -> state`, an `EstimatorState`.
      step: `(params, state, batch) -> (params, state)`.

    Example:
        >>> tx = bpfree.seed_replay(loss_fn, 0.1, num_samples=4)
        >>> int(tx.init(params).count)
        0
    """

    init: Callable[[Any], EstimatorState]
    step: Callable[[Any, EstimatorState, Any], tuple[Any, EstimatorState]]


def seed_replay(
    loss_fn: LossFn,
    learning_rate: Number,
    *,
    num_samples: int = 32,
    sigma: Number = 0.01,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: BaselineChoice = "clean",
    rank: int | None = None,
    noise: Noise = "rademacher",
    sharding: jax.sharding.NamedSharding | None = None,
    example_batch: Any = None,
) -> InPlace:
    r"""Weight perturbation with plain SGD, in the memory of inference.

    .. math:: \theta \leftarrow \theta - \frac{\eta}{K\sigma} \sum_k u_k z_k

    `optax.chain(bpfree.weight_perturbation(loss_fn, ...), optax.sgd(learning_rate))`
    moves the parameters by the same noise and weights, and holds a gradient meanwhile.
    Here the K losses are computed first, and each sample's noise is drawn again and added
    to the parameters: with their buffers donated, `jax.jit(tx.step, donate_argnums=0)`,
    no second tree of them is made. Where samples are spread over devices, these exchange
    K losses and no gradient, and each draws the noise of all samples.

    Contract: that of `weight_perturbation`, up to the rounding of each addition to the
    parameters: in bfloat16 a change below 1/256 of a parameter may be lost.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`.
      learning_rate: eta, a number or a schedule of the step.
      num_samples, sigma, seed, chunk_size, antithetic, baseline, rank, noise, sharding,
        example_batch: as in `bpfree.weight_perturbation`; all losses are known first.

    Returns:
      An `InPlace`. `bpfree.value` and `bpfree.fault_message` read its state.

    Raises:
      ValueError: as `bpfree.weight_perturbation`.

    Reference: Malladi et al., "Fine-tuning language models with just forward passes",
    NeurIPS 2023.

    Example:
        >>> tx = bpfree.seed_replay(loss_fn, 0.1, num_samples=4)
        >>> step = jax.jit(tx.step)
        >>> moved, state = step(params, tx.init(params), batch)
        >>> jax.tree.map(jnp.shape, moved)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_number(learning_rate)
    settings = make_settings(
        num_samples, sigma, chunk_size, antithetic, baseline, rank, noise, sharding
    )

    def moved(key, args, state, wanted) -> Estimate:
        run = begin(loss_fn, settings, key, args, state, wanted)
        if tags.varying(jax.typeof(run.clean)):
            raise ValueError(
                "seed_replay inside shard_map would move the parameters of each device "
                "by its own losses; use jit with sharded arrays, and sharding="
            )

        def weights(draws):
            noise = jax.vmap(run.draw)(draws)
            found = run.weigh(draws, lambda: run.losses(noise))
            return (found**2).sum(), found @ run.signs

        squares, found = sum_over_draws(weights, settings.layout)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        found = found * (-jnp.float32(rate) / (num_samples * run.scale))

        def add(k, params):
            return weight_noise.moved_by(params, run.draw(k), found[k])

        params = lax.fori_loop(0, len(found), add, args[0])
        return Estimate(params, run.clean, run.aux, run.fault(squares / num_samples))

    tx = transformation(of_losses(loss_fn, moved), loss_fn, seed, example_batch)

    def step(params, state, batch):
        return tx.update(None, state, params, batch=batch)

    return InPlace(tx.init, step)
