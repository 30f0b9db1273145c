"""Exact gradients of the same cost at the same equilibrium, as estimators.

L(theta) = C(theta, h*), h* = F(theta, h*) with the Jacobi sweep F.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpfree.equilibrium.energy import Dynamics, Energy, States
from bpfree.equilibrium.free_phase import equilibrium
from bpfree.equilibrium.relaxation import Relaxation, check_relaxation
from bpfree.equilibrium.states import total
from bpfree.estimators.backprop import backprop
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import check_energy, of_energy


def backprop_through_time(
    energy: Energy, *, relaxation: Relaxation, seed: int | jax.Array = 0
) -> EstimatorTransformation:
    """The gradient of the cost after `relaxation.free` sweeps, through all of them.

    Contract: exact for the unrolled network; memory grows with the sweeps.

    Args:
      energy: `bpfree.layered(...)` or `bpfree.primitive(...)`.
      relaxation: `bpfree.equilibrium.Relaxation(free=..., tolerance=None)`: a fixed
        number of sweeps.
      seed: int or typed PRNG key; nothing is random.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: a relaxation with a tolerance, whose number of sweeps is not fixed.
      TypeError: a loss function in place of an energy.

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> tx = bpfree.backprop_through_time(
        ...     energy, relaxation=bpfree.equilibrium.Relaxation(free=5, tolerance=None)
        ... )
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
        True
    """
    check_energy(energy)
    check_relaxation(relaxation)
    if relaxation.tolerance is not None:
        raise ValueError(
            "backprop through time needs a fixed number of sweeps: Relaxation(free=..., "
            "tolerance=None)"
        )

    def losses(params, batch):
        states = equilibrium(energy.bind(params, batch), relaxation)
        return energy.cost(params, states, batch)

    return backprop(losses, seed=seed)


def recurrent_backprop(
    energy: Energy,
    *,
    relaxation: Relaxation | None = None,
    adjoint_sweeps: int = 1000,
    adjoint_tolerance: float = 1e-7,
    seed: int | jax.Array = 0,
) -> EstimatorTransformation:
    r"""The gradient at the equilibrium by implicit differentiation (recurrent backprop).

    .. math:: \lambda = \partial C/\partial h + J^T \lambda, \qquad
        g = \partial C/\partial\theta + \lambda^T \partial F/\partial\theta

    with J = dF/dh of the Jacobi sweep at h*; lambda by iteration, until its relative
    change is below `adjoint_tolerance`.

    Contract: exact up to the two tolerances, if the spectral radius of J is below 1.

    Args:
      energy: `bpfree.layered(...)` or `bpfree.primitive(...)`.
      relaxation: towards h*; by default at most 1000 sweeps, to a tolerance of 1e-7.
      adjoint_sweeps: the most iterations of lambda.
      adjoint_tolerance: relative change of lambda at which its iteration stops.
      seed: int or typed PRNG key; nothing is random.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: settings of the relaxation that cannot be.
      TypeError: a loss function in place of an energy.

    Source: Almeida, "A learning rule for asynchronous perceptrons with feedback", 1987;
    Pineda, "Generalization of back-propagation to recurrent neural networks", 1987.

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> tx = bpfree.recurrent_backprop(energy)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
        True
    """
    settings = Relaxation(free=1000, tolerance=1e-7) if relaxation is None else relaxation
    check_relaxation(settings)

    def estimate(key, params, batch, state) -> Estimate:
        del key, state
        h = equilibrium(energy.bind(params, batch), settings)

        def mean_cost(params, h):
            return energy.cost(params, h, batch).mean()

        signal = jax.grad(mean_cost, argnums=1)(params, h)
        _, pull = jax.vjp(lambda h: _jacobi(energy.bind(params, batch), h), h)

        def go_on(carry):
            t, _, change = carry
            return (t < adjoint_sweeps) & (change > adjoint_tolerance)

        def body(carry):
            t, old, _ = carry
            new = optax.tree.add(signal, pull(old)[0])
            moved = optax.tree.norm(optax.tree.sub(new, old))
            return t + 1, new, moved / optax.tree.norm(new)

        first = (jnp.int32(0), signal, jnp.full((), jnp.inf, h[0].dtype))
        _, adjoint, _ = lax.while_loop(go_on, body, first)

        def surrogate(params):
            moved = _jacobi(energy.bind(params, batch), h)
            terms = [(a * m).sum() for a, m in zip(adjoint, moved, strict=True)]
            return mean_cost(params, h) + total(terms)

        gradient = jax.grad(surrogate)(params)
        return Estimate(gradient, energy.cost(params, h, batch))

    return transformation(of_energy(energy, estimate), energy, seed)


def _jacobi(dynamics: Dynamics, h: States) -> States:
    products = dynamics.products(h)
    return tuple(
        dynamics.activate(i, dynamics.drive(i, h, products, None)) for i in range(len(h))
    )
