"""Continual equilibrium propagation: the weights move while the network relaxes."""

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.equilibrium.energy import Energy, Phases
from bpfree.equilibrium.nudging import abs_not_zero
from bpfree.equilibrium.phases import relax_free
from bpfree.equilibrium.relaxation import Relaxation, check_relaxation, stacked, sweep
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import of_energy


def continual_equilibrium_propagation(
    energy: Energy,
    *,
    beta: float,
    learning_rate: float,
    relaxation: Relaxation | None = None,
    seed: int | jax.Array = 0,
) -> EstimatorTransformation:
    r"""C-EP: after each of the K nudged sweeps, a weight update from that sweep alone.

    .. math:: g_k = \frac{f(\theta_k, s_k, \beta_k) - f(\theta_k, s_{k-1}, \beta_{k-1})}
        {\beta}, \quad \theta_{k+1} = \theta_k - \eta g_k, \quad \hat g = \sum_k g_k

    with f = dF/dtheta / B, s_0 the free equilibrium, beta_0 = 0 and beta_k = beta. Sweeps
    see the weights that the sweeps before have left. Followed by `optax.sgd` of the same
    learning rate, the chain ends at theta_K itself.

    Contract: for a learning rate of 0 the sum telescopes to one-sided EP, O(beta) from
    the gradient; else O(beta) + O(learning_rate).

    Args:
      energy: of the network.
      beta: nudging; either sign, not 0.
      learning_rate: eta inside the estimator, a number >= 0.
      relaxation: its free phase, number of nudged sweeps K, ordering, factor (None: 1).
      seed: int or typed PRNG key; nothing is random.

    Raises ValueError for settings that cannot be.

    Reference: Ernoult et al. 2020, "Equilibrium Propagation with Continual Weight
    Updates".
    """
    abs_not_zero(beta)
    settings = Relaxation(nudged=15) if relaxation is None else relaxation
    check_relaxation(settings)
    if isinstance(learning_rate, (int, float)) and learning_rate < 0:
        raise ValueError(f"learning_rate={learning_rate} must not be negative")

    def estimate(key, params, batch, state) -> Estimate:
        del key, state
        dynamics = energy.bind(params, batch)
        dtype, size = dynamics.zeros[0].dtype, dynamics.zeros[0].shape[0]
        factor = jnp.asarray(1.0 if settings.factor is None else settings.factor, dtype)
        net = stacked(dynamics, settings.ordering)
        free = relax_free(net, settings, factor).states
        points = jnp.full((1,), beta, dtype)

        def slope(params, states, point):
            """f, up to the 1 / beta: -d/dtheta [Phi - point C] / B."""
            phases = Phases(states, point, jnp.ones_like(point) / size)
            return jax.grad(lambda p: -energy.weighted(p, batch, phases))(params)

        def one_sweep(carry, _):
            total, states, point = carry
            now = jax.tree.map(lambda p, g: p - learning_rate * g, params, total)
            net = stacked(energy.bind(now, batch), settings.ordering)
            moved, _ = sweep(net, points, states, net.products(states), factor)
            after, before = slope(now, moved, points), slope(now, states, point)
            total = jax.tree.map(lambda t, a, b: t + (a - b) / beta, total, after, before)
            return (total, moved, points), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        first = (zeros, free, jnp.zeros_like(points))
        (gradient, _, _), _ = lax.scan(one_sweep, first, length=settings.nudged)
        cost = energy.cost(params, tuple(h[0] for h in free), batch)
        return Estimate(gradient, cost)

    return transformation(of_energy(energy, estimate), energy, seed)
