"""What an estimator is, what it returns, and the codes of what goes wrong in it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from bpfree.program.trace import name_hash

NO_FAULT, BAD_LOSS, BAD_SIGMA, BAD_GRADIENT = -1, -2, -3, -4
BAD_RELAXATION, LOST_LOSS = -5, -6
SMALL_SIGMA = -16  # minus `name_code` of the node for which sigma is too small


def name_code(name: str) -> int:
    """The name of a node as a code >= 0 that leaves room for the others in int32."""
    return name_hash(name) >> 2


class Estimate(NamedTuple):
    """What one estimate returns.

    Attributes:
      gradient: params-shaped, of the mean loss; to be descended.
      value: mean of the clean losses, float32 ().
      aux: the loss function's aux from the clean pass, or None.
      fault: int32 (), NO_FAULT, or a code, or `name_code` of a bad node.
      state: the estimator's own next state.
    """

    gradient: Any
    value: jax.Array
    aux: Any = None
    fault: jax.Array | int = NO_FAULT
    state: Any = ()


class Estimator(NamedTuple):
    """A gradient estimator.

    Attributes:
      init: `params -> state`, the estimator's own state.
      estimate: `(key, params, batch, state, wanted=None) -> Estimate`; `state` is an
        EstimatorState, of which it may read all and replaces `inner`. `wanted` says for
        each leaf of params whether anybody asks for its gradient. The key is consumed.
    """

    init: Callable[[Any], Any]
    estimate: Callable[..., Estimate]
