"""Backprop, as an estimator: the control arm of every experiment."""

from typing import Any

import jax
import jax.numpy as jnp

from bpfree.estimators.base import (
    BAD_LOSS,
    NO_FAULT,
    Estimate,
    Estimator,
    EstimatorTransformation,
    transformation,
)
from bpfree.program.trace import LossFn, arguments, check_losses, split_aux


def backprop(
    loss_fn: LossFn,
    *,
    seed: int | jax.Array = 0,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""The exact gradient of the mean loss by reverse-mode autodiff.

    .. math:: \hat g = \nabla_\theta \frac{1}{B} \sum_b L_b

    Contract: exact. It ignores nodes and needs none.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`.
      seed: int or typed PRNG key, for loss functions that take one.
      example_batch: batch or ShapeDtypeStructs; needed if loss_fn returns aux.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: losses that are not (B,) or ().

    Example:
        >>> tx = bpfree.backprop(loss_fn)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """

    def estimate(key, params, batch, state, wanted=None) -> Estimate:
        del state, wanted
        _, loss_key = jax.random.split(key)

        def mean_loss(params):
            args = arguments(loss_fn, params, batch, loss_key)
            losses, aux = split_aux(loss_fn(*args))
            check_losses(losses)
            return losses.mean(), aux

        (value, aux), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
        fault = jnp.where(jnp.isfinite(value), NO_FAULT, BAD_LOSS).astype(jnp.int32)
        return Estimate(gradient, value.astype(jnp.float32), aux, fault)

    return transformation(
        Estimator(lambda params: (), estimate), loss_fn, seed, example_batch
    )
