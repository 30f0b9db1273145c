"""Backprop, as an estimator: the control arm of every experiment."""

from typing import Any

import jax

from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import mean_loss, of_losses
from bpfree.program.trace import LossFn


def backprop(
    loss_fn: LossFn, *, seed: int | jax.Array = 0, example_batch: Any = None
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

    def estimate(key, args, state, wanted) -> Estimate:
        del key, state, wanted

        mean = mean_loss(loss_fn, args)
        gradient, (losses, aux) = jax.grad(mean, has_aux=True)(args[0])
        return Estimate(gradient, losses, aux)

    return transformation(of_losses(loss_fn, estimate), loss_fn, seed, example_batch)
