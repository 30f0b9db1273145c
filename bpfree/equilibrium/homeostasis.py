r"""Jacobian homeostasis: a loss on the asymmetry of a vector field.

With J = dF/dh - I the Jacobian of the drives (W - I, no slopes of activations) and A its
antisymmetric part,

    E [|J e|^2 - e^T J^2 e] = |J|_F^2 - tr J^2 = 2 |A|_F^2,    e ~ N(0, I):

two nested Jacobian-vector products per direction e, local to the connections. Descended,
it turns the response of the states to the nudging towards the error signal.

Reference: Laborieux & Zenke 2024, "Improving equilibrium propagation without weight
symmetry through Jacobian homeostasis", arXiv:2309.02214.
"""

import jax

from bpfree.equilibrium.energy import Energy, States
from bpfree.equilibrium.feedback import dot, drives


def asymmetry(energy: Energy, params, batch, states: States, direction: States):
    """|J e|^2 - e^T J^2 e for a direction e, states-shaped: (B,)."""
    dynamics = energy.bind(params, batch)

    def field(h):
        return tuple(f - s for f, s in zip(drives(dynamics, h), h, strict=True))

    def jacobian(e):
        return jax.jvp(field, (states,), (e,))[1]

    once = jacobian(direction)
    return dot(once, once) - dot(direction, jacobian(once))


def homeostatic_loss(
    energy: Energy,
    params,
    batch,
    states: States,
    key: jax.Array,
    directions: int = 5,
) -> jax.Array:
    """Monte Carlo estimate of 2 |A|_F^2 / units, mean over the batch: ().

    Contract: unbiased, and so is its gradient in params at fixed states.
    """
    units = sum(h[0].size for h in states)

    def one(key):
        keys = jax.random.split(key, len(states))
        e = tuple(
            jax.random.normal(k, h.shape, h.dtype)
            for k, h in zip(keys, states, strict=True)
        )
        return asymmetry(energy, params, batch, states, e).mean()

    return jax.vmap(one)(jax.random.split(key, directions)).mean() / units
