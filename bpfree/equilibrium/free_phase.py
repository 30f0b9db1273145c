"""The network without nudging: its equilibrium, and what it predicts there."""

import jax
import jax.numpy as jnp

from bpfree.equilibrium.energy import Dynamics, Energy, States
from bpfree.equilibrium.relaxation import Relaxation, Relaxed, order_of, relax, settles


def relax_free(net: Dynamics, settings: Relaxation, factor: jax.Array) -> Relaxed:
    """The free phase, from zeros; `net` of one phase, as `Dynamics.stacked` gives it."""
    return relax(
        net,
        None,
        tuple(h[None] for h in net.zeros),
        order=order_of(settings.ordering, len(net.zeros)),
        limit=settings.free,
        factor=factor,
        settled=settles(settings, lambda h: h),
    )


def equilibrium(dynamics: Dynamics, settings: Relaxation) -> States:
    """States (B, ...) of the free network; a factor None is 1."""
    factor = 1.0 if settings.factor is None else settings.factor
    factor = jnp.asarray(factor, dynamics.dtype)
    return tuple(h[0] for h in relax_free(dynamics.stacked(), settings, factor).states)


def predict(energy: Energy, params, batch, settings: Relaxation) -> jax.Array:
    """Outputs (B, classes) at the free equilibrium.

    Args:
      energy, params, batch: the network, its parameters and inputs; the cost is not used.
      settings: `bpfree.equilibrium.Relaxation(...)`, of which the free phase counts; its
        factor None is 1.

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> relaxation = bpfree.equilibrium.Relaxation()
        >>> bpfree.equilibrium.predict(energy, params, batch, relaxation).shape
        (5, 2)
    """
    states = equilibrium(energy.bind(params, batch), settings)
    return energy.outputs(params, states, batch)
