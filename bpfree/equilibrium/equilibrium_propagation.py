"""Equilibrium propagation: the gradient from how a nudged network's equilibrium moves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from bpfree.equilibrium import holomorphy
from bpfree.equilibrium.energy import Energy
from bpfree.equilibrium.nudging import Nudging, centred
from bpfree.equilibrium.over_relaxation import factor_of, next_radius
from bpfree.equilibrium.phases import Solution, response, solve
from bpfree.equilibrium.relaxation import Relaxation, check_relaxation
from bpfree.equilibrium.states import minus, norm, rms
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import BAD_RELAXATION, NO_FAULT, Estimate
from bpfree.estimators.objective import of_energy


class EquilibriumState(NamedTuple):
    """State of the estimator.

    Attributes:
      radius: running estimate of the spectral radius mu of a Jacobi sweep, float32 ().
      metrics: of the last update, {name: float32 ()}: sweeps of each kind of phase;
        `error`, the largest estimated relative error of one, infinite if one was a
        single sweep, of which there is no estimate; `unsettled`, the share of
        examples that still moved by a tenth in the last free sweep; `disagreement` of
        the rule with the one of half as many points (about the root of its own relative
        error: near 1, the radius is too large), -1 if there is none.
    """

    radius: jax.Array
    metrics: dict[str, jax.Array]


METRICS = (
    "free_sweeps",
    "nudged_sweeps",
    "complex_sweeps",
    "error",
    "unsettled",
    "disagreement",
)


def equilibrium_propagation(
    energy: Energy,
    *,
    nudging: Nudging | None = None,
    relaxation: Relaxation | None = None,
    sharding: NamedSharding | None = None,
    seed: int | jax.Array = 0,
) -> EstimatorTransformation:
    r"""Equilibrium propagation, classic and holomorphic (hEP).

    With F = -(Phi - beta C) and equilibria s*(beta) of the nudged network,

    .. math:: \hat g = \mathrm{Re} \sum_n w_n \frac{1}{B} \sum_b
        \frac{\partial F}{\partial\theta}(s^*(\beta_n), \beta_n)

    for the points and weights of the nudging rule: a quadrature of d/dbeta at 0.

    Contract: the gradient of the mean cost at the free equilibrium, up to O(beta) for
    `one_sided`, O(beta^2) for `centred`, O(radius^N) for `holomorphic(radius, N)`, and up
    to the tolerance of the relaxation. It needs |beta| inside the disc in which the
    equilibrium is an analytic function of beta; that disc shrinks as training goes on.

    Args:
      energy: `bpfree.layered(...)` or `bpfree.primitive(...)`.
      nudging: a rule of `bpfree.equilibrium`; default `centred(0.4)`.
      relaxation: `bpfree.equilibrium.Relaxation(...)`; by default over-relaxation and
        the number of sweeps adapt by themselves.
      sharding: `NamedSharding(mesh, PartitionSpec("phase"))` spreads the nudged phases
        over devices, the complex ones (N/2 - 1 for even N) and the real ones each where
        the devices divide their number. A batch may be sharded along other axes.
      seed: int or typed PRNG key, for random signs and noise.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: settings that cannot be; when traced, complex nudging of a part that is
        not holomorphic, named.

    References: Scellier & Bengio 2017; Laborieux et al. 2021, arXiv:2006.03824 (centred);
    Laborieux & Zenke 2022, arXiv:2209.00530 (holomorphic).

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> tx = bpfree.equilibrium_propagation(energy)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
        True
    """
    rule = centred(0.4) if nudging is None else nudging
    settings = Relaxation() if relaxation is None else relaxation
    check_relaxation(settings)

    def init(params) -> EquilibriumState:
        zero = jnp.zeros((), jnp.float32)
        return EquilibriumState(zero, dict.fromkeys(METRICS, zero))

    def estimate(key, params, batch, state) -> Estimate:
        if rule.complex:
            holomorphy.check_parts(energy.parts(params, batch))
        dynamics = energy.bind(params, batch)
        factor = factor_of(settings, state.inner.radius, dynamics.dtype)
        sign_key, noise_key = jax.random.split(key)
        drawn = rule
        if rule.random_sign:
            sign = jax.random.rademacher(sign_key, (), dynamics.dtype)
            drawn = rule._replace(radius=sign * rule.radius)
        noise_key = noise_key if settings.noisy else None
        solution = solve(dynamics, drawn, settings, factor, noise_key, sharding)

        def surrogate(params):
            total = -energy.weighted(params, batch, *solution.phases)
            return total / dynamics.batch_size

        gradient = jax.grad(surrogate)(params)
        free = tuple(h[0] for h in solution.free.states)
        cost = energy.cost(params, free, batch)
        metrics = _metrics(solution, rule)
        lost = (metrics["unsettled"] > 0.5) & (solution.free.sweeps >= 10)
        fault = jnp.where(lost, BAD_RELAXATION, NO_FAULT)
        seen = solution.free if solution.real is None else solution.real
        radius = next_radius(state.inner.radius, seen.contraction, factor)
        inner = EquilibriumState(radius, metrics)
        return Estimate(gradient, cost, fault=fault, state=inner)

    return transformation(of_energy(energy, estimate, init), energy, seed)


def _metrics(solution: Solution, rule: Nudging) -> dict[str, jax.Array]:
    free = solution.free
    nudged = [p for p in (solution.real, solution.complex) if p is not None]
    size = norm(free.states)
    moved = jnp.maximum(solution.displacement, jnp.finfo(size.dtype).tiny)
    errors = [rms(p.error) / moved for p in nudged]
    sweeps = [
        0 if p is None else p.sweeps for p in (free, solution.real, solution.complex)
    ]
    values = (
        *sweeps,
        jnp.stack([rms(free.error) / rms(size), *errors]).max(),
        (free.residual > 0.1 * size).mean(),
        _disagreement(solution, rule),
    )
    return {
        name: jnp.asarray(value).astype(jnp.float32)
        for name, value in zip(METRICS, values, strict=True)
    }


def _disagreement(solution: Solution, rule: Nudging) -> jax.Array | float:
    """|response by the coarser rule - response| / |response|, over the batch."""
    if not rule.coarser:
        return -1.0
    found = (response(solution, c, rule) for c in (rule.coarser, rule.coefficients))
    coarse, fine = (tuple(h[None] for h in states) for states in found)
    return rms(norm(minus(coarse, fine))) / rms(norm(fine))
