"""Generalised holomorphic EP: networks without symmetric weights."""

import jax
import jax.numpy as jnp

from bpfree.equilibrium import holomorphy
from bpfree.equilibrium.energy import Energy
from bpfree.equilibrium.feedback import drives
from bpfree.equilibrium.homeostasis import homeostatic_loss
from bpfree.equilibrium.nudging import Nudging, centred
from bpfree.equilibrium.phases import response, solve
from bpfree.equilibrium.relaxation import Relaxation, check_relaxation
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import of_energy


def generalized_equilibrium_propagation(
    energy: Energy,
    *,
    nudging: Nudging | None = None,
    relaxation: Relaxation | None = None,
    homeostasis: float | jax.Array = 0.0,
    directions: int = 5,
    seed: int | jax.Array = 0,
) -> EstimatorTransformation:
    r"""EP for a vector field: how the states respond, times what drives them.

    .. math:: \hat g = \frac{1}{B} \sum_b \Big[ \frac{\partial C}{\partial\theta}
        - \Big(\frac{\partial F}{\partial\theta}\Big)^T \frac{d h^*}{d\beta} \Big],
        \qquad \frac{d h^*}{d\beta} = \mathrm{Re} \sum_n w_n h^*(\beta_n)

    with drives F and the cost C at the free equilibrium, and the response by the nudging
    rule. The error signal of implicit differentiation is delta = -J^{-T} dC/dh, with J =
    dF/dh - (sigma^{-1})'; in its place stands -dh/dbeta = J^{-1} J^T delta. They agree if
    J is symmetric, and differ by -2 S^{-1} A delta to first order in the antisymmetric
    part A. `homeostasis` adds that coefficient times the gradient of 2 |A|_F^2 / units.

    Contract: biased by the asymmetry, besides O(radius^N); for symmetric weights the
    gradient, as `equilibrium_propagation`.

    Args:
      energy: `bpfree.layered(..., feedback_angle=...)`, or any energy.
      nudging, relaxation: as in `equilibrium_propagation`; default factor 1.
      homeostasis: coefficient of the homeostatic loss.
      directions: of its Monte Carlo estimate.
      seed: int or typed PRNG key, of directions and noise.

    Reference: Laborieux & Zenke 2024, arXiv:2309.02214.
    """
    rule = centred(0.4) if nudging is None else nudging
    settings = Relaxation(factor=1.0) if relaxation is None else relaxation
    check_relaxation(settings)
    if rule.random_sign:
        raise ValueError("random_sign is a rule of equilibrium_propagation only")
    if directions < 1:
        raise ValueError(f"directions={directions}: at least 1")

    def estimate(key, params, batch, state) -> Estimate:
        del state
        if rule.complex:
            holomorphy.check_parts(energy.parts(params, batch))
        dynamics = energy.bind(params, batch)
        dtype, size = dynamics.zeros[0].dtype, dynamics.zeros[0].shape[0]
        factor = jnp.asarray(1.0 if settings.factor is None else settings.factor, dtype)
        noise_key, loss_key = jax.random.split(key)
        noise_key = noise_key if settings.noisy else None

        def outputs(states):
            return energy.outputs(params, states, batch)

        solution = solve(dynamics, rule, settings, factor, noise_key, outputs)
        free = tuple(h[0] for h in solution.free.states)
        moved = response(solution, rule.coefficients, rule)

        def surrogate(params):
            """Its derivative is the estimate; `moved` and `free` are constants."""
            terms = zip(moved, drives(energy.bind(params, batch), free), strict=True)
            error = -sum((m * f).sum() for m, f in terms) / size
            costs = energy.cost(params, free, batch)
            symmetry = jnp.zeros((), dtype)
            if not isinstance(homeostasis, (int, float)) or homeostasis != 0:
                symmetry = homeostasis * homeostatic_loss(
                    energy, params, batch, free, loss_key, directions
                )
            return error + costs.mean() + symmetry, costs

        gradient, costs = jax.grad(surrogate, has_aux=True)(params)
        return Estimate(gradient, costs)

    return transformation(of_energy(energy, estimate), energy, seed)
