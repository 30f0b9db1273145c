"""Networks with backward weights of their own, in float64 against implicit gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree import equilibrium as eq
from bpfree.equilibrium.feedback import drives
from bpfree.equilibrium.homeostasis import asymmetry, homeostatic_loss
from tests import energies
from tests.statistics import assert_close, relative_error

MANY = eq.Relaxation(80, 80, 80, factor=1.0, tolerance=None)


@functools.cache
def net(angle=40.0):
    """(energy, params, batch) of an MLP 9-7-6-3."""
    energy = energies.mlp((7, 6), 3, feedback_angle=angle)
    data = energies.batch(3, (9,), 3)
    return energy, energy.init(jax.random.key(2), data["x"]), data


def generalized(energy, params, data, **options):
    options = {"nudging": eq.holomorphic(0.2, 8), "relaxation": MANY} | options
    tx = bpfree.generalized_equilibrium_propagation(energy, **options)
    return energies.gradient(tx, params, data)


def exact(energy, params, data):
    tx = bpfree.recurrent_backprop(energy, relaxation=MANY, adjoint_tolerance=1e-15)
    return energies.gradient(tx, params, data)


def closed_form(energy, params, data, signal):
    """The mean gradient with `signal(J, dC/dh)` in place of the error, per example."""

    def one(x, label):
        single = {"x": x[None], "label": label[None]}
        free = tuple(
            h[0]
            for h in eq.solve(
                energy.bind(params, single), eq.centred(0.1), MANY, jnp.ones((), x.dtype)
            ).free.states
        )
        sizes = np.cumsum([h.size for h in free])[:-1]

        def states(flat):
            return tuple(part[None] for part in jnp.split(flat, sizes))

        def drive(params, flat):
            moved = drives(energy.bind(params, single), states(flat))
            return jnp.concatenate([f[0] for f in moved])

        def cost(params, flat):
            return energy.cost(params, states(flat), single)[0]

        h = jnp.concatenate([part[0] for part in free])
        slope = jax.vmap(jax.grad(eq.dsilu))(drive(params, h))
        jacobian = jax.jacfwd(drive, 1)(params, h) - jnp.diag(1 / slope)
        error = signal(jacobian, jax.grad(cost, 1)(params, h))
        pulled = jax.vjp(lambda p: drive(p, h), params)[1](error)[0]
        return jax.tree.map(jnp.add, pulled, jax.grad(cost)(params, h))

    each = jax.jit(jax.vmap(one))(data["x"], data["label"])
    return jax.tree.map(lambda g: g.mean(0), each)


def implicit(jacobian, slope):
    """delta = -J^-T dC/dh."""
    return -jnp.linalg.solve(jacobian.T, slope)


def test_the_error_signal_is_j_inverse_j_transposed_delta():
    """The bias of the method exactly; the reference itself against its closed form."""

    def responded(jacobian, slope):
        return jnp.linalg.solve(jacobian, jacobian.T @ implicit(jacobian, slope))

    args = net()
    found = generalized(*args)
    assert relative_error(found, closed_form(*args, responded)) < 1e-8
    truth = exact(*args)
    assert relative_error(truth, closed_form(*args, implicit)) < 1e-8
    assert relative_error(found, truth) > 0.05
    wrong = closed_form(*args, lambda j, slope: -responded(j, slope))
    assert relative_error(found, wrong) > 0.5


def test_symmetric_weights_leave_the_gradient():
    """At an angle of 0, and for an ordinary energy, in the order of the rule."""
    args = net(0.0)
    truth = exact(*args)
    small, large = (
        relative_error(generalized(*args, nudging=eq.centred(beta)), truth)
        for beta in (0.1, 0.2)
    )
    assert large / small == pytest.approx(4, rel=0.1) and large < 0.01
    energy, params, data, truth = energies.reference()
    found = generalized(energy, params, data, relaxation=energies.EXACT)
    assert relative_error(found, truth) < 1e-8


def test_the_homeostatic_loss_is_twice_the_antisymmetric_part():
    """Summed over a basis: 2 |A|_F^2, here sum_l |W_l - B_l|^2; so is its gradient."""
    energy, params, data = net()
    states = tuple(0.3 * jnp.ones((3, n)) for n in (7, 6))
    basis = jnp.eye(13)

    def basis_sum(params):
        def one(e):
            e = jnp.broadcast_to(e, (3, 13))
            parts = (e[:, :7], e[:, 7:])
            return asymmetry(energy, params, data, states, parts)

        return jax.vmap(one)(basis).sum(0)[0]

    def closed(params):
        w, b = params["layer_2"]["kernel"], params["layer_2_feedback"]["kernel"]
        a = jnp.block([[jnp.zeros((7, 7)), b], [w.T, jnp.zeros((6, 6))]])
        return 2 * jnp.square((a - a.T) / 2).sum()

    def sampled(params, key):
        return homeostatic_loss(energy, params, data, states, key, 400) * 13

    found, wanted = (jax.jit(jax.value_and_grad(f))(params) for f in (basis_sum, closed))
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert float(wanted[0]) > 0.5
    draws = jax.jit(jax.vmap(sampled, (None, 0)))(
        params, jax.random.split(jax.random.key(0), 16)
    )
    error = float(draws.std() / 4)
    assert float(draws.mean()) == pytest.approx(float(wanted[0]), abs=4 * error)
    assert error < 0.05 * float(wanted[0])


def test_homeostasis_turns_the_response_towards_the_gradient():
    """Its part of the estimate alone symmetrises; the rest then is the gradient."""
    energy, params, data = net()
    few = eq.Relaxation(10, 10, 0, factor=1.0, tolerance=None)
    both, plain = (
        bpfree.generalized_equilibrium_propagation(
            energy, relaxation=few, homeostasis=c, directions=100
        )
        for c in (3.0, 0.0)
    )

    @jax.jit
    def step(params, key):
        with_loss, without = (
            tx.estimator.estimate(key, params, data, None).gradient
            for tx in (both, plain)
        )
        new = jax.tree.map(lambda p, g, o: p - 0.3 * (g - o), params, with_loss, without)
        return new, None

    keys = jax.random.split(jax.random.key(0), 40)
    after, _ = jax.lax.scan(step, params, keys)

    @jax.jit
    def bias(params):
        found = generalized(energy, params, data, nudging=eq.centred(0.01))
        return found, exact(energy, params, data)

    before, now = (relative_error(*bias(p)) for p in (params, after))
    assert now < 0.1 * before


def test_convolutions_with_backward_kernels_follow_their_own_reference():
    """At 0 degrees the gradient of the tied net, split over W and B."""
    layers = [energies.conv(3), (energies.conv(4, padding="VALID"), eq.softmax_pool())]
    make = functools.partial(
        eq.layered, layers, activation="dsilu", readout=energies.dense(3)
    )
    data = energies.batch(2, (6, 6, 2), 3)
    tied, split = make(), make(feedback_angle=0.0)
    params = split.init(jax.random.key(0), data["x"])
    kernel = params["layer_2_feedback"]["kernel"]
    assert float(jnp.abs(kernel - params["layer_2"]["kernel"]).max()) < 1e-12
    rule = {"nudging": eq.centred(0.01)}
    found = generalized(split, params, data, **rule)
    shared = {k: v for k, v in params.items() if not k.endswith("feedback")}
    wanted = generalized(tied, shared, data, **rule)
    total = found["layer_2"]["kernel"] + found["layer_2_feedback"]["kernel"]
    assert_close(total, wanted["layer_2"]["kernel"], rtol=1e-6, atol=1e-10)
    assert_close(found["layer_1"], wanted["layer_1"], rtol=1e-9, atol=1e-12)
    part = exact(split, params, data)["layer_2_feedback"]["kernel"]
    assert relative_error(found["layer_2_feedback"]["kernel"], part) < 1e-4


def test_what_cannot_be_is_told():
    energy, params, data = net()
    with pytest.raises(ValueError, match="no energy: use bpfree.generalized"):
        energies.gradient(bpfree.equilibrium_propagation(energy), params, data)
    with pytest.raises(ValueError, match="feedback_angle=200"):
        energies.mlp((4,), feedback_angle=200)
    with pytest.raises(ValueError, match="directions=0"):
        bpfree.generalized_equilibrium_propagation(energy, directions=0)
    with pytest.raises(ValueError, match="random_sign"):
        bpfree.generalized_equilibrium_propagation(energy, nudging=eq.random_sign(0.1))
