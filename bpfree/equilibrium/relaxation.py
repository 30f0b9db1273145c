r"""Relaxation to a fixed point: one loop for every update rule.

A sweep updates group after group of states, each with the newest neighbours,

    h_l <- h_l + w (sigma(drive_l(h)) - h_l),

so "jacobi" is one group of all states, "sequential" (Gauss-Seidel) one state after the
other, w < 1 damping and w > 1 over-relaxation (SOR). The free phase goes from the first
state to the last, so that its first sweep, from zeros, is the feed-forward pass; nudged
phases go back from the last to the first, so that their first sweep brings the nudging
to every state.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.choices import check_choice
from bpfree.equilibrium.energy import Dynamics, States
from bpfree.equilibrium.states import minus, norm, rms

Ordering = Literal["sequential", "jacobi"]
_SLOWEST = 0.9  # contraction beyond which an error estimate is not extrapolated
_UNROLLED = 3  # sweeps, at most, that are no loop: what nobody reads is not computed

Kick = Callable[[jax.Array, int, jax.Array], jax.Array]


class Relaxation(NamedTuple):
    """How to relax.

    Attributes:
      free, nudged: sweeps of the free and of each nudged phase; at most, if there is a
        tolerance.
      predicted: sweeps of complex phases, which begin at the extrapolation of the real
        ones; 0: they begin at the free state and take `nudged` sweeps.
      ordering: "sequential" or "jacobi".
      factor: w; None: Young's, from a running estimate of mu (1 for "jacobi").
      tolerance: a phase stops when its estimated error is less, relative to the
        displacement by the nudging (in the free phase, to the states), as root mean
        squares over the batch: what the error of the batch's gradient depends on. None:
        all sweeps are made.
      noise: standard deviation of normal noise on the drives in the nudged phases,
        independent for every example, phase and sweep.

    Example:
        >>> bpfree.equilibrium.Relaxation(free=20, tolerance=None).noisy
        False
    """

    free: int = 100
    nudged: int = 40
    predicted: int = 12
    ordering: Ordering = "sequential"
    factor: float | jax.Array | None = None
    tolerance: float | jax.Array | None = 0.005
    noise: float | jax.Array = 0.0

    @property
    def noisy(self) -> bool:
        """Whether there may be noise: a traced deviation counts as some."""
        return not isinstance(self.noise, (int, float)) or self.noise > 0


class Relaxed(NamedTuple):
    """Where K phases came to.

    Attributes:
      states: (K, B, ...).
      residual: (K, B), norm of the change that the last sweep made.
      error: (K, B), estimated distance to the fixed point, residual lambda/(1 - lambda).
      contraction: lambda of the whole batch in the last sweeps, ().
      sweeps: how many were made, int32 ().
      products: of the states (`Dynamics.products`), where another phase may begin.

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
        >>> solution.real.residual.shape  # two phases of five examples
        (2, 5)
    """

    states: States
    residual: jax.Array
    error: jax.Array
    contraction: jax.Array
    sweeps: jax.Array
    products: Any


def check_relaxation(settings: Relaxation) -> None:
    """ValueError with the choices for settings that cannot be."""
    check_choice("ordering", settings.ordering, Ordering)
    for name in ("free", "nudged"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}={getattr(settings, name)} sweeps: at least 1")
    if settings.predicted < 0:
        raise ValueError(f"predicted={settings.predicted} must not be negative")
    for name in ("factor", "tolerance"):
        value = getattr(settings, name)
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name}={value} must be positive, or None")


# ----------------------------------------------------------------------------- a sweep


Order = tuple[tuple[int, ...], ...]


def order_of(ordering: Ordering, depth: int) -> Order:
    """The groups of states of a sweep, from the first state to the last."""
    every = tuple(range(depth))
    return (every,) if ordering == "jacobi" else tuple((i,) for i in every)


def sweep(net: Dynamics, order: Order, points, states, products, factor, kick=None):
    """(states, products) after one sweep."""
    for group in order:
        new = list(states)
        for i in group:
            drive = net.drive(i, states, products, points)
            if kick is not None:
                drive = drive + kick(i, drive)
            step = net.activate(i, drive) - states[i]
            new[i] = states[i] + factor.astype(step.dtype) * step
        states = tuple(new)
        products = net.renew(states, products, group)
    return states, products


# ---------------------------------------------------------------------------- the loop


class _Carry(NamedTuple):
    sweep: jax.Array
    states: States
    products: object
    residual: jax.Array
    before: jax.Array
    error: jax.Array


Settled = Callable[[States, jax.Array], jax.Array]


def relax(
    net: Dynamics,
    points: jax.Array | None,
    start: States,
    products: Any = None,
    *,
    order: Order,
    limit: int,
    factor: jax.Array,
    settled: Settled | None = None,
    response: Callable[[States], States] = lambda change: change,
    kick: Kick | None = None,
) -> Relaxed:
    """Sweep until the batch has settled, or `limit` times.

    Args:
      net: of K phases (`Dynamics.stacked`).
      points: beta (K,), or None for the free network (K = 1).
      start: states (K, B, ...).
      products: of these states, if they are known.
      order: of the states in a sweep.
      limit: the number of sweeps, at most.
      factor: w, ().
      settled: `(states, error (K, B)) -> ()`, whether the batch has; None: never.
      response: the part of a change that counts as error.
      kick: `(sweep, i, drive) -> noise` added to the drives.
    """
    infinite = jnp.full(start[0].shape[:2], jnp.inf, start[0].real.dtype)

    def measured(c: _Carry) -> _Carry:
        noise = None if kick is None else lambda i, drive: kick(c.sweep, i, drive)
        old = c.states, c.products
        new, products = sweep(net, order, points, *old, factor, noise)
        residual = norm(response(minus(new, c.states)))
        rate = jnp.where(residual == 0, 0.0, residual / c.residual)
        rate = jnp.clip(rate, 0, _SLOWEST)
        error = jnp.where(jnp.isinf(c.residual), infinite, residual * rate / (1 - rate))
        return _Carry(c.sweep + 1, new, products, residual, c.residual, error)

    products = net.products(start) if products is None else products
    c = _Carry(jnp.int32(0), start, products, *(infinite,) * 3)
    if settled is None:
        few = limit <= _UNROLLED
        c = lax.fori_loop(0, limit, lambda _, c: measured(c), c, unroll=few)
    else:
        go_on = lambda c: (c.sweep < limit) & ~settled(c.states, c.error)  # noqa: E731
        c = lax.while_loop(go_on, measured, c)
    contraction = rms(c.residual) / rms(c.before)
    return Relaxed(c.states, c.residual, c.error, contraction, c.sweep, c.products)


def noise(key: jax.Array, scale) -> Kick:
    """Normal noise for the drives, real, keyed by sweep and state."""

    def kick(sweep, i, drive):
        at = jax.random.fold_in(jax.random.fold_in(key, sweep), i)
        draw = jax.random.normal(at, drive.shape, drive.real.dtype)
        return (jnp.asarray(scale, draw.dtype) * draw).astype(drive.dtype)

    return kick


ASTRAY = 0.5  # estimated error relative to the displacement of a lost example


def settles(
    settings: Relaxation, displacement: Callable[[States], States], count_all: bool = True
) -> Settled | None:
    """The argument `settled` of `relax`; None if the settings have no tolerance.

    The batch has settled when its estimated error is below the tolerance times its
    displacement, both as root mean squares over the examples.

    Args:
      displacement: of states, against which their error is judged.
      count_all: False: examples that have gone astray (`ASTRAY`) do not count, so that
        the others do not wait for them.
    """
    if settings.tolerance is None:
        return None

    def settled(states, error):
        moved = norm(displacement(states))
        counted = (error <= ASTRAY * moved) | jnp.isinf(error) | count_all
        left, scale = (rms(jnp.where(counted, n, 0.0)) for n in (error, moved))
        return left <= settings.tolerance * scale

    return settled
