"""Backprop, as an estimator: the control arm of every experiment."""

from typing import Any

import jax
import jax.numpy as jnp

from bpfree import nodes as _nodes
from bpfree.transform import (
    BAD_GRADIENT,
    BAD_LOSS,
    NO_FAULT,
    Estimate,
    Estimator,
    EstimatorTransformation,
    transformation,
)


def backprop(
    loss_fn: _nodes.LossFn,
    *,
    seed: int | jax.Array = 0,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""The exact gradient by reverse-mode autodiff, :math:`\nabla_\theta\,\frac1B\sum_b L_b`.

    Contract: exact. It ignores nodes and needs none.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`.
      seed: int or typed PRNG key, for loss functions that take one.
      example_batch: batch or ShapeDtypeStructs; needed if loss_fn returns aux.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: losses that are not (B,) or ().
    """

    def estimate(key, params, batch, state) -> Estimate:
        del state
        _, loss_key = jax.random.split(key)

        def mean_loss(params):
            args = _nodes.arguments(loss_fn, params, batch, loss_key)
            losses, aux = _nodes.split_aux(loss_fn(*args))
            _nodes.check_losses(losses)
            return losses.mean(), aux

        (value, aux), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
        finite = [jnp.isfinite(g).all() for g in jax.tree.leaves(gradient)]
        fault = jnp.where(jnp.stack(finite).all(), NO_FAULT, BAD_GRADIENT)
        fault = jnp.where(jnp.isfinite(value), fault, BAD_LOSS).astype(jnp.int32)
        return Estimate(gradient, value.astype(jnp.float32), aux, fault)

    return transformation(
        Estimator(lambda params: (), estimate), loss_fn, seed, example_batch
    )
