"""The phases of one update: free, real nudged, and complex nudged.

All phases of a kind are relaxed side by side. Real phases begin at the free state.
Complex ones begin where the polynomial in beta through the free state and the real phases
says, and need only a few sweeps more.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.equilibrium import anderson
from bpfree.equilibrium import relaxation as _relaxation
from bpfree.equilibrium.energy import Dynamics, Energy, Phases, States
from bpfree.equilibrium.nudging import Nudging
from bpfree.equilibrium.relaxation import Kick, Relaxation, Relaxed, minus, norm, rms


class Solution(NamedTuple):
    """The equilibria of one batch.

    Attributes:
      free: of the free phase, K = 1.
      real, complex: of the nudged phases, or None if the rule has no such points.
      phases: states, points and weights, as `Energy.weighted` takes them.
      displacement: root mean square over the batch of |h_beta - h_0|, ().
    """

    free: Relaxed
    real: Relaxed | None
    complex: Relaxed | None
    phases: tuple[Phases, ...]
    displacement: jax.Array


def solve(
    dynamics: Dynamics,
    nudging: Nudging,
    settings: Relaxation,
    factor: jax.Array,
    key: jax.Array | None = None,
) -> Solution:
    """Relax all phases of a nudging rule.

    Args:
      factor: of over-relaxation, ().
      key: of the noise, if there is any.
    """
    net = _relaxation.stacked(dynamics, settings.ordering)
    free = relax_free(net, settings, factor)
    radius = jnp.asarray(nudging.radius, dynamics.zeros[0].dtype)

    def nudged(which, start, limit, dtype, phase_key, response):
        roots = _cast([nudging.roots[i] for i in which], dtype)
        weights = _cast([nudging.coefficients[i] for i in which], dtype)
        scale = radius.astype(dtype)
        kick = None if phase_key is None else noise(phase_key, settings.noise)
        relaxed = _relax(settings)(
            net,
            roots * scale,
            start,
            limit=limit,
            factor=factor,
            settled=_relaxation.settles(
                settings,
                lambda h: response(minus(h, free.states)),
                count_all=not jnp.issubdtype(dtype, jnp.complexfloating),
            ),
            response=response,
            kick=kick,
        )
        return relaxed, Phases(relaxed.states, roots * scale, weights / scale)

    keys = (None, None) if key is None else jax.random.split(key)
    real, complex_, phases = None, None, []
    if nudging.real:
        count = len(nudging.real)
        start = tuple(jnp.repeat(h, count, 0) for h in free.states)
        real, p = nudged(
            nudging.real, start, settings.nudged, radius.dtype, keys[0], _relaxation.apart
        )
        phases.append(p)
    if nudging.complex:
        dtype = np.result_type(radius.dtype, np.complex64)
        known = nudging.real if settings.predicted else ()
        start = _predicted(nudging, known, free.states, real, dtype)
        limit = settings.predicted or settings.nudged
        complex_, p = nudged(nudging.complex, start, limit, dtype, keys[1], lambda h: h)
        if real is not None and settings.predicted:
            p = p._replace(states=_kept(complex_, start, free.states))
        phases.append(p)
    moved = rms(jnp.concatenate([norm(minus(p.states, free.states)) for p in phases]))
    return Solution(free, real, complex_, tuple(phases), moved)


def relax_free(net: Dynamics, settings: Relaxation, factor: jax.Array) -> Relaxed:
    """The free phase, from zeros; `net` of one phase."""
    return _relax(settings)(
        net,
        None,
        tuple(h[None] for h in net.zeros),
        limit=settings.free,
        factor=factor,
        settled=_relaxation.settles(settings, lambda h: h),
    )


def _relax(settings: Relaxation):
    if settings.anderson:
        return partial(anderson.guarded, memory=settings.anderson)
    return _relaxation.relax


def predict(energy: Energy, params, batch, settings: Relaxation) -> jax.Array:
    """Outputs (B, classes) at the free equilibrium; factor None counts as 1."""
    dynamics = energy.bind(params, batch)
    net = _relaxation.stacked(dynamics, settings.ordering)
    factor = 1.0 if settings.factor is None else settings.factor
    free = relax_free(net, settings, jnp.asarray(factor, dynamics.zeros[0].dtype))
    return energy.outputs(params, tuple(h[0] for h in free.states), batch)


def _cast(numbers, dtype) -> jax.Array:
    """Static complex numbers as an array; real ones lose their zero imaginary parts."""
    array = np.asarray(numbers)
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        array = array.real
    return jnp.asarray(array, dtype)


def noise(key: jax.Array, scale) -> Kick:
    """Normal noise for the drives, real, keyed by sweep and state."""

    def kick(sweep, i, drive):
        at = jax.random.fold_in(jax.random.fold_in(key, sweep), i)
        draw = jax.random.normal(at, drive.shape, drive.real.dtype)
        return (jnp.asarray(scale, draw.dtype) * draw).astype(drive.dtype)

    return kick


def _predicted(nudging, known, free: States, real: Relaxed | None, dtype) -> States:
    """Complex phases extrapolated from beta = 0 and the known real points (Lagrange)."""
    at = np.array([0.0, *(nudging.roots[i].real for i in known if nudging.roots[i] != 0)])
    rows = [i for i, k in enumerate(known) if nudging.roots[k] != 0]
    roots = np.array([nudging.roots[i] for i in nudging.complex])
    basis = np.ones((len(roots), len(at)), complex)
    for j, point in enumerate(at):
        for other in np.delete(at, j):
            basis[:, j] *= (roots - other) / (point - other)
    values = free
    if real is not None and rows:
        values = tuple(
            jnp.concatenate([h, r[np.array(rows)]])
            for h, r in zip(free, real.states, strict=True)
        )
    return tuple(
        jnp.tensordot(jnp.asarray(basis, dtype), h.astype(dtype), 1) for h in values
    )


def _kept(found: Relaxed, predicted: States, free: States) -> States:
    """Complex phases that went astray go back to their prediction, example by example.

    The quadrature of an extrapolated polynomial is the centred rule, so an example for
    which the circle is too large falls back to N = 2.
    """
    moved = norm(minus(predicted, free))
    astray = ~(found.error <= _relaxation.ASTRAY * moved).all(0, keepdims=True)
    return tuple(
        jnp.where(astray.reshape(1, -1, *(1,) * (h.ndim - 2)), p, h)
        for h, p in zip(found.states, predicted, strict=True)
    )
