"""Energies: layers against the scalar function they stand for; what cannot be is told."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import bpfree
from bpfree import equilibrium as eq
from tests import energies
from tests.energies import conv, dense
from tests.statistics import assert_close

POOLED = [
    (conv(4), eq.softmax_pool(2, 0.7)),
    (conv(5, padding="VALID"), eq.average_pool(2)),
]


def make(name, **options):
    """(energy, batch, params) of a net with everything in it that `name` says."""
    if name == "pools":
        energy = eq.layered(
            [*POOLED, dense(6)], activation="dsilu", readout=dense(3), **options
        )
        data = energies.batch(2, (9, 9, 2), 3)
    elif name == "strides and skips":
        energy = eq.layered(
            [conv(4, strides=2), conv(3), conv(3, strides=2, padding=1)],
            activation="tanh",
            readout=dense(3),
            skips=[(1, 3, conv(3, strides=2)), (0, 2, conv(3, strides=2))],
            **options,
        )
        data = energies.batch(2, (8, 8, 2), 3)
    else:
        options = {"readout": None, "cost": "squared_error", **options}
        energy = energies.mlp((5, 4, 3), **options)
        data = energies.batch(2, (6,), 3)
    return energy, data, energy.init(jax.random.key(0), data["x"])


def written(name, feedback):
    """Phi of the same nets in plain Flax, as nobody would want to write it."""

    def apply(module, p, h):
        return module.apply({"params": p}, h)

    def phi(params, states, batch):
        h = (batch["x"], *states)
        if name == "pools":
            first, second = ((m, pool.fn) for m, pool in POOLED)
            z = [
                first[1](apply(first[0], params["layer_1"], h[0])),
                second[1](apply(second[0], params["layer_2"], h[1])),
                apply(dense(6), params["layer_3"], h[2].reshape(len(h[2]), -1)),
            ]
        elif name == "strides and skips":
            z = [
                apply(conv(4, strides=2), params["layer_1"], h[0]),
                apply(conv(3), params["layer_2"], h[1])
                + apply(conv(3, strides=2), params["skip_0_2"], h[0]),
                apply(conv(3, strides=2, padding=1), params["layer_3"], h[2])
                + apply(conv(3, strides=2), params["skip_1_3"], h[1]),
            ]
        else:
            z = [
                apply(dense(n), params[f"layer_{i}"], h[i - 1])
                for i, n in ((1, 5), (2, 4), (3, 3))
            ]
        axes = [tuple(range(1, s.ndim)) for s in states]
        terms = [(s * y).sum(a) for s, y, a in zip(states, z, axes, strict=True)]
        return sum(t / feedback**n for n, t in enumerate(reversed(terms)))

    return phi


NETS = ["pools", "strides and skips", "output neurons"]


@pytest.mark.parametrize("feedback", (1.0, 0.3))
@pytest.mark.parametrize("name", NETS)
def test_layers_are_the_scalar_function_they_stand_for(name, feedback):
    """Drives and the weight gradient equal those by autodiff of Phi, off equilibrium.

    State l of the L is worth feedback^(l - L) in the energy: its drive is dPhi/dh_l over
    that.
    """
    energy, data, params = make(name, feedback=feedback)
    bound = energy.bind(params, data)
    plain = eq.primitive(
        written(name, feedback),
        energy.cost,
        states=lambda params, batch: bound.zeros,
        activation=eq.dsilu,
    )
    keys = jax.random.split(jax.random.key(3), len(bound.zeros))
    states = tuple(
        jax.random.normal(k, (2, *h.shape))
        for k, h in zip(keys, bound.zeros, strict=True)
    )

    def everything(energy, params, states):
        dynamics = energy.bind(params, data)
        one = tuple(h[0] for h in states)
        beta = jnp.asarray(0.3)
        products = dynamics.products(one)
        drives = [dynamics.drive(i, one, products, beta) for i in range(len(one))]
        points = jnp.asarray([0.3, -0.2])
        phases = eq.energy.Phases(states, points, jnp.asarray([1.0, 2.0]))
        gradient = jax.grad(lambda p: energy.weighted(p, data, phases))(params)
        return drives, gradient

    ours = jax.jit(functools.partial(everything, energy))(params, states)
    drives, gradient = jax.jit(functools.partial(everything, plain))(params, states)
    top = len(drives) - 1
    drives = [z * feedback ** (top - i) for i, z in enumerate(drives)]
    theirs = drives, gradient
    assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def order(energy, params, data, points):
    """log2 of the ratio of the errors at radii 0.2 and 0.1."""
    truth = energies.exact(energy, params, data)[0]
    rule = functools.partial(eq.holomorphic, num_points=points)
    small, large = energies.errors(energy, params, data, truth, rule, (0.1, 0.2))
    return math.log2(large / small)


def test_convolutional_gradients_have_the_order_of_the_rule():
    energy, data, params = make("pools")
    assert order(energy, params, data, 4) == pytest.approx(4, abs=0.3)


def test_a_user_written_energy_has_the_order_of_the_rule():
    """A scalar function of states of its own making, here with a lateral connection."""

    def phi(params, states, batch):
        (h,) = states
        w = params["w"].astype(h.dtype)
        lateral = 0.1 * (params["s"] + params["s"].T).astype(h.dtype)
        x = batch["x"].astype(h.dtype)
        return (h * (x @ w)).sum(1) + 0.5 * (h * (h @ lateral)).sum(1)

    def cost(params, states, batch):
        return eq.squared_error(states[0], batch["label"])

    energy = eq.primitive(
        phi,
        cost,
        states=lambda params, batch: (jnp.zeros((4, 3)),),
        activation=eq.dsilu,
    )
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (5, 3)),
        "s": jax.random.normal(keys[1], (3, 3)),
    }
    data = {"x": jax.random.normal(keys[2], (4, 5)), "label": jnp.arange(4) % 3}
    assert order(energy, params, data, 3) == pytest.approx(3, abs=0.3)


# ------------------------------------------------------------------------------ errors


def complex_update(energy, data):
    params = energy.init(jax.random.key(0), data["x"])
    tx = bpfree.equilibrium_propagation(energy, nudging=eq.holomorphic(0.1, 4))
    jax.eval_shape(lambda p: tx.update(None, tx.init(p), p, batch=data), params)


def absolute(outputs, label):
    return jnp.abs(outputs).sum(1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": nn.relu}, "activation 'relu' is not holomorphic: .*'max'"),
        ({"activation": "hard_sigmoid"}, "activation 'hard_sigmoid'"),
        ({"cost": absolute}, "cost 'absolute' is not holomorphic: .*'abs'"),
    ],
)
def test_complex_nudging_names_the_part_that_is_not_holomorphic(options, message):
    data = energies.batch(2, (6,), 10)
    with pytest.raises(ValueError, match=f"(?s){message}.*centred"):
        complex_update(energies.mlp((4,), **options), data)


def test_complex_nudging_refuses_max_pools_and_a_user_written_phi():
    layers = [conv(2), (conv(2), eq.max_pool())]
    energy = eq.layered(layers, activation="dsilu", readout=dense(10))
    with pytest.raises(ValueError, match="pooling 'max_pool' of layer_2.*reduce_max"):
        complex_update(energy, energies.batch(2, (4, 4, 1)))
    energy = eq.primitive(
        lambda params, h, batch: jnp.abs(h[0]).sum(1),
        lambda params, h, batch: h[0].sum(1),
        states=lambda params, batch: (jnp.zeros((2, 3)),),
        activation=jnp.tanh,
        init=lambda key, x: {"w": x},
    )
    with pytest.raises(ValueError, match="phi is not holomorphic: .*'abs'"):
        complex_update(energy, energies.batch(2))


def test_real_nudging_takes_what_is_not_holomorphic():
    layers = [conv(2), (conv(2), eq.max_pool())]
    energy = eq.layered(layers, activation="hard_sigmoid", readout=dense(10))
    data = energies.batch(2, (4, 4, 1))
    params = energy.init(jax.random.key(0), data["x"])
    tx = bpfree.equilibrium_propagation(energy, nudging=eq.centred(0.01))
    gradient = energies.gradient(tx, params, data)
    assert float(jnp.abs(gradient["layer_1"]["kernel"]).max()) > 0


@pytest.mark.parametrize(
    "make_energy, error, message",
    [
        (lambda: eq.layered([]), ValueError, "at least one layer"),
        (lambda: energies.mlp(activation="rlu"), ValueError, "'rlu' is unknown.*dsilu"),
        (lambda: energies.mlp(feedback=0.0), ValueError, "feedback=0.0 must be .*<= 1"),
        (lambda: energies.mlp(feedback=1.5), ValueError, "feedback=1.5 must be .*<= 1"),
        (lambda: energies.mlp(feedback=math.nan), ValueError, "feedback=nan must be"),
        (lambda: energies.mlp(cost="mse"), ValueError, "'mse' is unknown.*squared_error"),
        (lambda: energies.mlp(skips=[(2, 1, dense(3))]), ValueError, "from 2 to 1"),
        (lambda: eq.softmax_pool(2, 0.0), ValueError, "must be positive"),
        (lambda: eq.holomorphic(0.1, 1), ValueError, "one_sided"),
        (lambda: eq.centred(0.0), ValueError, "not zero"),
        (lambda: bpfree.equilibrium_propagation(energies), TypeError, "needs an energy"),
        (
            lambda: bpfree.equilibrium_propagation(
                energies.mlp(), relaxation=eq.Relaxation(ordering="odd")
            ),
            ValueError,
            "'odd' is unknown.*jacobi",
        ),
    ],
)
def test_what_cannot_be_is_told(make_energy, error, message):
    with pytest.raises(error, match=message):
        make_energy()


def test_layers_that_do_not_fit_are_told():
    data = energies.batch(2, (6,))
    with pytest.raises(ValueError, match="skip_0_2 makes .3,., but state 2 has .*.5,."):
        energies.mlp((4, 5), skips=[(0, 2, dense(3))]).init(jax.random.key(0), data["x"])
    energy = eq.layered(
        [nn.Conv(2, (3,), feature_group_count=2, param_dtype=jnp.float64)]
    )
    x = jnp.zeros((2, 5, 2))
    params = energy.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="feature_group_count"):
        energy.bind(params, {"x": x, "label": data["label"]})
    energy = eq.layered([nn.Embed(3, 4)])
    with pytest.raises(TypeError, match="Dense and Conv layers, got Embed"):
        energy.bind({"layer_1": {"kernel": x}}, {"x": x, "label": data["label"]})
