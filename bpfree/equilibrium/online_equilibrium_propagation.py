"""On-line holomorphic EP: a teaching signal that oscillates while the network runs."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.equilibrium import holomorphy, relaxation
from bpfree.equilibrium.energy import Energy, Phases, States
from bpfree.equilibrium.relaxation import Ordering, Relaxation
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.objective import of_energy


def online_equilibrium_propagation(
    energy: Energy,
    *,
    radius: float = 0.4,
    num_points: int = 10,
    sweeps: int = 30,
    periods: int = 3,
    ordering: Ordering = "jacobi",
    factor: float = 1.0,
    noise_scale: float = 0.0,
    seed: int | jax.Array = 0,
) -> EstimatorTransformation:
    r"""Holomorphic EP without phases: beta goes round the circle, the states follow.

    .. math:: \hat g = \frac{1}{MNB} \sum_{m=1}^{MN} \mathrm{Re}\, \frac{1}{\beta_m}
        \sum_b \frac{\partial F}{\partial\theta}(s_m, \beta_m)

    with M periods of N points. From zeros, and never reset, the states make `sweeps`
    updates at each beta_m = radius exp(2 pi i m / N); the running mean takes in the first
    transient. There is no free phase, so `value` is the cost where the circle's mean
    state is (the mean-value property).

    Contract: the gradient up to O(radius^N), and up to the lag of the states from beta,
    which falls with `sweeps` and, as the transient is averaged out, with `periods`.

    Args:
      energy: with holomorphic parts.
      radius, num_points: of the circle; num_points >= 2.
      sweeps: at each point.
      periods: M.
      ordering, factor: of the sweeps, as in `bpfree.equilibrium.Relaxation`.
      noise_scale: standard deviation of normal noise on the drives, independent for
        every example and sweep.
      seed: int or typed PRNG key, of the noise.

    Raises:
      ValueError: counts below their minimum; when traced, parts that are not holomorphic.

    Reference: Laborieux & Zenke 2022, arXiv:2209.00530.

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> tx = bpfree.online_equilibrium_propagation(energy, num_points=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params)
        True
    """
    if num_points < 2 or sweeps < 1 or periods < 1:
        raise ValueError(
            f"num_points={num_points}, sweeps={sweeps}, periods={periods}: at least 2, 1 "
            "and 1"
        )
    relaxation.check_relaxation(Relaxation(ordering=ordering, factor=factor))
    circle = radius * np.exp(2j * np.pi * np.arange(num_points) / num_points)

    def estimate(key, params, batch, state) -> Estimate:
        del state
        holomorphy.check_parts(energy.parts(params, batch))
        dynamics = energy.bind(params, batch)
        dtype = np.result_type(dynamics.dtype, np.complex64)
        net = dynamics.stacked()
        order = relaxation.order_of(ordering, len(dynamics.zeros))
        size, count = dynamics.batch_size, periods * num_points
        w = jnp.asarray(factor, dynamics.dtype)

        def at_point(carry, point_and_key):
            states, total, mean = carry
            point, key = point_and_key
            kick = relaxation.noise(key, noise_scale) if noise_scale else None
            found = relaxation.relax(
                net, point[None], states, order=order, limit=sweeps, factor=w, kick=kick
            )
            phases = Phases(found.states, point[None], 1 / (count * size * point[None]))
            added = jax.grad(lambda p: -energy.weighted(p, batch, phases))(params)
            mean = tuple(
                m + h[0].real / count for m, h in zip(mean, found.states, strict=True)
            )
            return (found.states, jax.tree.map(jnp.add, total, added), mean), None

        start: States = tuple(h[None].astype(dtype) for h in dynamics.zeros)
        points = jnp.tile(jnp.asarray(circle, dtype), periods)
        first = (start, jax.tree.map(jnp.zeros_like, params), dynamics.zeros)
        keys = jax.random.split(key, count)
        (_, gradient, mean), _ = lax.scan(at_point, first, (points, keys))
        return Estimate(gradient, energy.cost(params, mean, batch))

    return transformation(of_energy(energy, estimate), energy, seed)
