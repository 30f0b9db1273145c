"""Modules that never move: config.frozen = ("Dense_0", "Block_1").

No derivative reaches their parameters, and no weight decay; modules of a plain Flax model
have no nodes then, so that no noise is spent on them.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any

import optax
from jax import lax


def hold(names: Collection[str], loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss function of (params, batch[, key]), constant in the frozen modules."""

    @functools.wraps(loss_fn)
    def held(params, *rest):
        still = {k: lax.stop_gradient(v) if k in names else v for k, v in params.items()}
        return loss_fn(still, *rest)

    return held if names else loss_fn


def keep(
    names: Collection[str], transformation: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """The transformation without updates of frozen modules; its state is the same."""

    def update(gradients, state, params=None, **extra):
        updates, state = transformation.update(gradients, state, params, **extra)
        zero = optax.tree.zeros_like
        still = {k: zero(v) if k in names else v for k, v in updates.items()}
        return still, state

    if not names:
        return transformation
    return optax.GradientTransformationExtraArgs(transformation.init, update)
