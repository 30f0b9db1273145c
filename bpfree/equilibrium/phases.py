"""The phases of one update: free, real nudged, and complex nudged.

All phases of a kind are relaxed side by side. Real phases begin at the free state.
Complex ones begin where the polynomial in beta through the free state and the real phases
says, and need only a few sweeps more.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from bpfree.equilibrium import relaxation
from bpfree.equilibrium.energy import Dynamics, Phases, States
from bpfree.equilibrium.extrapolation import extrapolated, kept
from bpfree.equilibrium.free_phase import relax_free
from bpfree.equilibrium.nudging import Nudging
from bpfree.equilibrium.relaxation import Relaxation, Relaxed
from bpfree.equilibrium.states import apart, minus, norm, rms, total
from bpfree.program import devices


class Solution(NamedTuple):
    """The equilibria of one batch.

    Attributes:
      free: of the free phase, K = 1.
      real, complex: of the nudged phases, or None if the rule has no such points.
      phases: states, points and weights, as `Energy.weighted` takes them.
      radius: |beta|, with its sign, ().
      displacement: root mean square over the batch of |h_beta - h_0|, ().

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> solution = bpfree.equilibrium.solve(
        ...     energy.bind(params, batch),
        ...     bpfree.equilibrium.centred(0.4),
        ...     bpfree.equilibrium.Relaxation(),
        ...     factor=jnp.ones(()),
        ... )
        >>> solution.complex is None
        True
    """

    free: Relaxed
    real: Relaxed | None
    complex: Relaxed | None
    phases: tuple[Phases, ...]
    radius: jax.Array
    displacement: jax.Array


def solve(
    dynamics: Dynamics,
    nudging: Nudging,
    settings: Relaxation,
    factor: jax.Array,
    key: jax.Array | None = None,
    sharding: NamedSharding | None = None,
) -> Solution:
    """Relax all phases of a nudging rule.

    Args:
      dynamics: `energy.bind(params, batch)`.
      nudging: a rule, such as `bpfree.equilibrium.centred(0.4)`.
      settings: `bpfree.equilibrium.Relaxation(...)`.
      factor: of over-relaxation, ().
      key: of the noise, if there is any.
      sharding: its first axis spreads the nudged phases over devices: the complex ones,
        and the real ones, where the devices divide their number.

    Returns:
      A `bpfree.equilibrium.Solution`.

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> solution = bpfree.equilibrium.solve(
        ...     energy.bind(params, batch),
        ...     bpfree.equilibrium.centred(0.4),
        ...     bpfree.equilibrium.Relaxation(),
        ...     factor=jnp.ones(()),
        ... )
        >>> solution.free.states[0].shape  # one phase of five examples
        (1, 5, 4)
    """
    net = dynamics.stacked()
    free = relax_free(net, settings, factor)
    radius = jnp.asarray(nudging.radius, net.dtype)
    todo = _Todo(net, nudging, settings, factor, radius, free.states, sharding)
    keys = (None, None) if key is None else jax.random.split(key)
    real, complex_, phases = None, None, []
    if nudging.real:
        start = jax.tree.map(
            lambda h: jnp.repeat(h, len(nudging.real), 0), (free.states, free.products)
        )
        real = _nudged(todo, nudging.real, start, settings.nudged, keys[0], apart)
        phases.append(_weighed(todo, nudging.real, real.states))
    if nudging.complex:
        known = real.states if real is not None and settings.predicted else None
        dtype = np.result_type(net.dtype, np.complex64)
        start = extrapolated(nudging, free.states, known, dtype)
        limit = settings.predicted or settings.nudged
        complex_ = _nudged(todo, nudging.complex, (start, None), limit, keys[1])
        states = complex_.states
        if known is not None and key is None:
            states = kept(complex_, start, free.states)
        phases.append(_weighed(todo, nudging.complex, states))
    moved = rms(jnp.concatenate([norm(minus(p.states, free.states)) for p in phases]))
    return Solution(free, real, complex_, tuple(phases), radius, moved)


class _Todo(NamedTuple):
    """What the nudged phases of one batch have in common."""

    net: Dynamics
    nudging: Nudging
    settings: Relaxation
    factor: jax.Array
    radius: jax.Array
    free: States
    sharding: NamedSharding | None


def _nudged(todo: _Todo, which, start, limit, key, response=lambda h: h) -> Relaxed:
    """Relaxed phases at the points `which` of the rule; start: (states, products)."""
    states, products = _spread(todo.sharding, start)
    settings, dtype = todo.settings, states[0].dtype
    found = relaxation.relax(
        todo.net,
        _numbers(todo.nudging.roots, which, dtype) * todo.radius.astype(dtype),
        states,
        products,
        order=relaxation.order_of(settings.ordering, len(states))[::-1],
        limit=limit,
        factor=todo.factor,
        settled=relaxation.settles(
            settings,
            lambda h: response(minus(h, todo.free)),
            count_all=not jnp.iscomplexobj(states[0]),
        ),
        response=response,
        kick=None if key is None else relaxation.noise(key, settings.noise),
    )
    return found._replace(states=_spread(todo.sharding, found.states))


def _spread(sharding: NamedSharding | None, states: Any) -> Any:
    """Arrays (K, ...) with K over the devices, if they divide K."""
    if sharding is None:
        return states
    uneven = len(jax.tree.leaves(states)[0]) % devices.count(sharding)
    return states if uneven else jax.tree.map(partial(devices.spread, sharding), states)


def _weighed(todo: _Todo, which, states: States) -> Phases:
    """These phases with points and weights (K,)."""
    dtype = states[0].dtype
    scale = todo.radius.astype(dtype)
    roots = _numbers(todo.nudging.roots, which, dtype)
    weights = _numbers(todo.nudging.coefficients, which, dtype)
    return Phases(states, roots * scale, weights / scale)


def response(
    solution: Solution, coefficients: Sequence[complex], nudging: Nudging
) -> States:
    """Re sum_k c_k (h_k - h_0) / radius, states (B, ...): dh/dbeta by a rule.

    Args:
      coefficients: of `nudging`, or of its coarser rule.
    """
    which = [part for part in (nudging.real, nudging.complex) if part]
    moved = []
    for n, free in enumerate(solution.free.states):
        terms = []
        for part, phases in zip(which, solution.phases, strict=True):
            change = phases.states[n] - free.astype(phases.states[n].dtype)
            weights = _numbers(coefficients, part, change.dtype)
            terms.append(jnp.tensordot(weights, change, 1).real)
        moved.append(total(terms) / solution.radius)
    return tuple(moved)


def _numbers(numbers, which, dtype) -> jax.Array:
    """(K,) of static complex numbers; real ones lose their zero imaginary parts."""
    array = np.asarray([numbers[i] for i in which])
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        array = array.real
    return jnp.asarray(array, dtype)
