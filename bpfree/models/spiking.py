"""Spiking classifier: leaky integrate-and-fire units with a hard threshold."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from bpfree.choices import check_choice


def rate(x: jax.Array, steps: int) -> jax.Array:
    """(B, F) in 0 .. 1 to spikes (B, T, F): x T of them at even distances, rounded."""
    times = jnp.arange(1, steps + 1, dtype=x.dtype).reshape(1, -1, 1)
    counts = jnp.floor(jnp.clip(x, 0, 1)[:, None] * times)
    return jnp.diff(counts, axis=1, prepend=0)


Coding = Literal["rate", "none"]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _with_surrogate(u: jax.Array, steepness: float) -> jax.Array:
    return (u > 0).astype(u.dtype)


@_with_surrogate.defjvp
def _with_surrogate_jvp(steepness, primals, tangents):
    (u,), (du,) = primals, tangents
    return _with_surrogate(u, steepness), du / (1 + steepness * jnp.abs(u)) ** 2


def fire(u: jax.Array, steepness: float = 0.0) -> jax.Array:
    """1 where u > 0, else 0; derivative 0, or 1 / (1 + steepness |u|)^2."""
    return _with_surrogate(u, steepness) if steepness else (u > 0).astype(u.dtype)


class Model(nn.Module):
    r"""Dense layers of spiking units; logits from the mean of the last layer's spikes.

    .. math:: v_t = \lambda v_{t-1} (1 - s_{t-1}) + W x_t + b,\quad s_t = [v_t > 1]

    A layer is run over all steps before the next one starts, so its weights meet all
    steps in one product, forwards and in the gradient.

    Attributes:
      num_classes: width of the last layer, whose outputs are logits.
      hidden: units of the layers.
      steps: T, for examples that are no spike trains yet.
      coding: "rate", by which numbers 0 .. 1 become spikes; "none" for data that comes as
        spike trains (B, T, ...).
      decay: lambda, of the membrane in a step.
      surrogate: steepness of the stand-in for the derivative of a spike, for backprop;
        0: none, and backprop trains the last layer only.
    """

    num_classes: int
    hidden: Sequence[int] = (128,)
    steps: int = 16
    coding: Coding = "rate"
    decay: float = 0.9
    surrogate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Examples (B, ...), or spike trains (B, T, ...), to logits (B, num_classes).

        Raises ValueError for an unknown coding.
        """
        check_choice("coding", self.coding, Coding)
        if self.coding == "none":
            spikes = x.reshape(*x.shape[:2], -1)
        else:
            spikes = rate(x.reshape(x.shape[0], -1), self.steps)
        for width in self.hidden:
            spikes = self._spikes(nn.Dense(width)(spikes))
        return nn.Dense(self.num_classes)(spikes.mean(1))

    def _spikes(self, currents: jax.Array) -> jax.Array:
        """Currents (B, T, units) to spikes of the same shape."""

        def step(state, current):
            v, s = state
            v = self.decay * v * (1 - s) + current
            s = fire(v - 1, self.surrogate)
            return (v, s), s

        rest = jnp.zeros_like(currents[:, 0])
        _, spikes = lax.scan(step, (rest, rest), currents.swapaxes(0, 1))
        return spikes.swapaxes(0, 1)
