"""Relaxation: every update rule finds the same equilibrium, and trouble is reported."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree import equilibrium as eq
from bpfree.equilibrium.over_relaxation import best_factor, observed_radius
from bpfree.equilibrium.states import norm
from tests import energies
from tests.energies import EXACT
from tests.statistics import relative_error

WAYS = {
    "jacobi": EXACT._replace(ordering="jacobi", free=120, nudged=120, predicted=0),
    "damped": EXACT._replace(ordering="jacobi", factor=0.7, free=160, nudged=160),
    "over-relaxed": EXACT._replace(factor=1.15),
    "tolerance": EXACT._replace(tolerance=1e-12),
    "no prediction": EXACT._replace(tolerance=1e-12, predicted=0),
}


def solution(settings, points=4, factor=None):
    energy, params, data, _ = energies.reference()

    @jax.jit
    def run(params, data):
        w = jnp.asarray(factor or settings.factor, jnp.float64)
        rule = eq.holomorphic(0.4, points)
        return eq.solve(energy.bind(params, data), rule, settings, w)

    return run(params, data)


@pytest.fixture(scope="module")
def truth():
    return solution(EXACT)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_finds_the_same_real_and_complex_equilibria(way, truth):
    found = solution(WAYS[way])
    for ours, theirs in zip(found.phases, truth.phases, strict=True):
        for a, b in zip(ours.states, theirs.states, strict=True):
            assert float(jnp.abs(a - b).max()) < 1e-10
    if WAYS[way].tolerance is not None:
        assert int(found.free.sweeps) < EXACT.free
        assert found.real.residual.shape == (2, 4)


def test_estimated_errors_are_the_distance_to_the_fixed_point(truth):
    early = solution(EXACT._replace(free=8))
    distance = norm(
        tuple(a - b for a, b in zip(early.free.states, truth.free.states, strict=True))
    )
    assert bool((early.free.error > distance / 3).all())
    assert bool((early.free.error < distance * 3).all())


def test_youngs_theory():
    """The radius is read off the contraction, and the best factor contracts by w - 1."""
    radius = jnp.asarray(0.9)
    assert float(observed_radius(radius**2, jnp.asarray(1.0))) == pytest.approx(0.9)
    w = best_factor(radius)
    assert float(observed_radius(w - 1, w)) == pytest.approx(0.9)


def symmetric_pair(gain):
    """Two linear states that drive each other: the Jacobi radius is `gain`."""

    def phi(params, h, batch):
        return gain * h[0][:, 0] * h[1][:, 0] + batch["x"][:, 0] * h[0][:, 0]

    return eq.primitive(
        phi,
        lambda params, h, batch: 0.5 * (h[1][:, 0] - 1.0) ** 2 + 0 * params["w"],
        states=lambda params, batch: (jnp.zeros((2, 1)), jnp.zeros((2, 1))),
        activation=eq.identity,
    )


def states_after(energy, steps, **options):
    params, data = {"w": jnp.ones(())}, {"x": jnp.asarray([[0.5], [1.0]])}
    tx = bpfree.equilibrium_propagation(energy, nudging=eq.centred(0.1), **options)

    @jax.jit
    def step(state):
        return tx.update(None, state, params, batch=data)[1]

    states = [tx.init(params)]
    for _ in range(steps):
        states.append(step(states[-1]))
    return states, (energy, params, data)


def test_the_default_learns_the_radius_and_saves_sweeps():
    """w is Young's after a few updates, and sweeps are fewer than without."""
    settings = eq.Relaxation(tolerance=1e-6)
    states, _ = states_after(symmetric_pair(0.95), 25, relaxation=settings)
    assert float(states[-1].inner.radius) == pytest.approx(0.95, abs=0.04)
    first, last = (bpfree.metrics(states[i])["free_sweeps"] for i in (1, -1))
    assert float(last) < 0.45 * float(first)


def test_a_network_that_does_not_settle_is_a_fault_with_advice():
    """Beyond radius 1 nothing converges."""
    settings = eq.Relaxation(free=40, factor=1.9, tolerance=None)
    states, args = states_after(symmetric_pair(1.5), 1, relaxation=settings)
    message = bpfree.fault_message(states[-1], *args)
    assert message.startswith("step 0: half of the examples still moved"), message
    assert "Relaxation(factor=0.5)" in message


def test_an_oscillation_of_period_two_is_seen():
    """tanh(-4 h): two sweeps bring every state back, one does not."""
    energy = eq.primitive(
        lambda params, h, batch: -2.0 * (h[0][:, 0] ** 2) + 0.5 * h[0][:, 0],
        lambda params, h, batch: h[0][:, 0] + 0 * params["w"],
        states=lambda params, batch: (jnp.zeros((2, 1)),),
        activation=jnp.tanh,
    )
    settings = eq.Relaxation(free=50, factor=1.0, tolerance=None)
    states, args = states_after(energy, 1, relaxation=settings)
    assert "still moved" in bpfree.fault_message(states[-1], *args)
    damped = settings._replace(factor=0.3)
    states, args = states_after(energy, 1, relaxation=damped)
    assert bpfree.fault_message(states[-1], *args) is None


def test_too_large_a_radius_shows_as_disagreement_and_falls_back():
    """sigmoid(4z - 2) with large weights: the circle reaches beyond the disc."""
    energy = eq.layered(
        [nn.Dense(20, param_dtype=jnp.float64), nn.Dense(20, param_dtype=jnp.float64)],
        readout=nn.Dense(10, param_dtype=jnp.float64),
    )
    data = energies.batch(6, (64,))
    params = energy.init(jax.random.key(0), data["x"])

    @jax.jit
    def said(radius):
        tx = bpfree.equilibrium_propagation(
            energy,
            nudging=eq.holomorphic(radius, 4),
            relaxation=eq.Relaxation(200, 200, 200, factor=1.0, tolerance=None),
        )
        gradient, state = tx.update(None, tx.init(params), params, batch=data)
        return bpfree.metrics(state)["disagreement"], gradient

    (small, large), gradient = jax.vmap(said)(jnp.asarray([0.01, 4.0]))
    assert float(small) < 0.01 and float(large) > 0.1
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))


def test_noise_is_new_for_every_example_and_reproducible():
    energy, params, data, _ = energies.reference()
    same = jax.tree.map(lambda a: jnp.repeat(a[:1], 4, 0), data)
    settings = eq.Relaxation(30, 30, 0, factor=1.0, tolerance=None, noise=0.05)

    @jax.jit
    def run(key):
        one = jnp.ones((), jnp.float64)
        bound = energy.bind(params, same)
        return eq.solve(bound, eq.centred(0.4), settings, one, key)

    found = run(jax.random.key(0))
    first = found.real.states[0]
    assert bool((found.free.states[0][0, 0] == found.free.states[0][0, 1]).all())
    assert float(jnp.abs(first[0, 0] - first[0, 1]).max()) > 1e-3
    assert float(jnp.abs(first[0, 0] - first[1, 0]).max()) > 1e-3
    assert bool((run(jax.random.key(0)).real.states[0] == first).all())


def test_phases_spread_over_devices():
    """18 points: eight complex phases, one a device; the same gradient, no gathering."""
    energy, params, data, _ = energies.reference()
    mesh = jax.make_mesh((8,), ("phase",), axis_types=(AxisType.Auto,))
    layout = NamedSharding(mesh, PartitionSpec("phase"))
    few = eq.Relaxation(5, 5, 5, factor=1.0, tolerance=None)

    def made(sharding):
        @jax.jit
        def run(params, data):
            rule, one = eq.holomorphic(0.4, 18), jnp.ones((), jnp.float64)
            bound = energy.bind(params, data)
            found = eq.solve(bound, rule, few, one, sharding=sharding)
            tx = bpfree.equilibrium_propagation(
                energy, nudging=rule, relaxation=few, sharding=sharding
            )
            gradient = tx.update(None, tx.init(params), params, batch=data)[0]
            return found.complex.states, gradient

        return run.lower(params, data).compile()

    plain, spread = made(None), made(layout)
    (_, expected), (states, found) = plain(params, data), spread(params, data)
    assert relative_error(found, expected) < 1e-12
    for h in states:
        assert h.sharding.is_equivalent_to(layout, h.ndim)
        assert {s.data.shape[0] for s in h.addressable_shards} == {1}
    assert "all-gather" not in spread.as_text()
