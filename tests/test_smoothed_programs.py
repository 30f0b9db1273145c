"""The likelihood ratio of convolutions, recurrent nets, a graph and a spiking neuron.

Truth: the gradient of the smoothed loss, by differentiating through the noise, and for
spikes by adding up all spike trains.
"""

import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import bpfree
from tests import problems
from tests.test_gradients import passes, pathwise

SIGMA = 0.4
KEYS = jax.random.split(jax.random.key(3), 8)


def normal(i, *shape):
    return jax.random.normal(KEYS[i], shape, jnp.float64)


def check(loss, params, batch, repeats=1024, sigma=SIGMA, resolves=0.03, samples=64):
    tx = bpfree.likelihood_ratio(loss, num_samples=samples, sigma=sigma)
    truth = pathwise(loss, params, batch, sigma, repeats=512)
    found = problems.estimates(tx, params, batch, repeats)
    passes(found, truth, resolves, truth_repeats=True)


# -------------------------------------------------------------------------- convolutions


class ConvNet(nn.Module):
    strides: int
    size: tuple[int, int] = (3, 3)

    @nn.compact
    def __call__(self, x):
        options = {"param_dtype": jnp.float64, "dtype": jnp.float64}
        x = nn.tanh(nn.Conv(2, self.size, strides=self.strides, **options)(x))
        return nn.Dense(1, **options)(x.reshape(x.shape[0], -1))


def squared(outputs, labels):
    return (outputs[:, 0] - labels) ** 2


@pytest.mark.parametrize(
    "strides, noise",
    [(1, "preactivation"), (2, "preactivation"), (2, "weight"), (1, "auto")],
)
def test_convolution(strides, noise):
    """5 x 4 images: odd and even. 18 weights serve 20 positions of 2 channels: "auto"
    perturbs them, and the one output of the last layer."""
    model = ConvNet(strides)
    batch = {"x": normal(0, 3, 5, 4, 1), "label": normal(1, 3)}
    params = model.init(KEYS[2], batch["x"])["params"]
    loss = bpfree.supervised(model, squared, noise=noise)
    names = {b.name for b in bpfree.blocks(loss, params, batch)} - {"(loss)"}
    conv = {"Conv_0"} if noise == "preactivation" else {"Conv_0/kernel", "Conv_0/bias"}
    dense = {"Dense_0"} if noise != "weight" else {"Dense_0/kernel", "Dense_0/bias"}
    assert names == conv | dense
    check(loss, params, batch, sigma=0.3, resolves=0.05)


def test_weight_noise_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            options = {"param_dtype": jnp.float64, "dtype": jnp.float64, "rngs": rngs}
            self.first = nnx.Linear(3, 3, **options)
            self.second = nnx.Linear(3, 1, use_bias=False, **options)

        def __call__(self, x):
            return self.second(nnx.tanh(self.first(x)))

    model = Net(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    batch = {"x": normal(0, 4, 3), "label": normal(1, 4)}
    loss = bpfree.supervised(model, squared, noise="weight")
    names = {b.name for b in bpfree.blocks(loss, params, batch)}
    assert names == {"first/kernel", "first/bias", "second/kernel", "(loss)"}
    assert bpfree.supervised(model, squared)(params, batch).shape == (4,)
    check(loss, params, batch)


def test_a_layer_that_is_called_twice_has_one_noise():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, param_dtype=jnp.float64)
            return layer(nn.tanh(layer(x)))

    params = Twice().init(KEYS[0], jnp.zeros((2, 3), jnp.float64))["params"]
    batch = {"x": normal(0, 2, 3), "label": normal(1, 2)}
    loss = bpfree.supervised(Twice(), squared, noise="weight")
    names = [b.name for b in bpfree.blocks(loss, params, batch)][:-1]
    assert sorted(names) == ["Dense_0/bias", "Dense_0/kernel"]


# ----------------------------------------------------------------- recurrence and graphs


def gru(params, batch):
    def step(h, x):
        gates = bpfree.node(x @ params["w"] + h @ params["u"], "gates")
        r, z, n = jnp.split(gates, 3, axis=1)
        r, z = jax.nn.sigmoid(r), jax.nn.sigmoid(z)
        new = jnp.tanh(bpfree.node((r * h) @ params["v"], "candidate") + n)
        return (1 - z) * h + z * new, None

    x = batch["x"].swapaxes(0, 1)
    h = jax.lax.scan(step, jnp.zeros((x.shape[1], 2), x.dtype), x)[0]
    return ((h - batch["t"]) ** 2).sum(1)


def lstm(params, batch):
    def step(carry, x):
        h, c = carry
        gates = bpfree.node(x @ params["w"] + h @ params["u"], "gates")
        i, f, o, g = jnp.split(gates, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    x = batch["x"].swapaxes(0, 1)
    zeros = jnp.zeros((x.shape[1], 2), x.dtype)
    (h, _), _ = jax.lax.scan(step, (zeros, zeros), x)
    return ((h - batch["t"]) ** 2).sum(1)


@pytest.mark.parametrize("cell, gates", [(gru, 3), (lstm, 4)])
def test_gated_cells_over_five_steps(cell, gates):
    params = {"w": normal(0, 2, 2 * gates), "u": normal(1, 2, 2 * gates)}
    if cell is gru:
        params["v"] = normal(4, 2, 2)
    batch = {"x": normal(2, 4, 5, 2), "t": normal(3, 4, 2)}
    check(cell, params, batch)


def test_graph_of_two_layers():
    """One loss for the whole graph: every node of the net is credited with it."""
    edges = (normal(0, 6, 6) > 0.3).astype(jnp.float64)
    mixing = edges / jnp.maximum(edges.sum(1, keepdims=True), 1)

    def loss(params, batch):
        h = jnp.tanh(bpfree.node(mixing @ batch["x"] @ params["w1"], "h"))
        y = bpfree.node(mixing @ h @ params["w2"], "y")
        return ((y - batch["t"]) ** 2).mean()

    params = {"w1": normal(1, 3, 3), "w2": normal(2, 3, 1)}
    check(loss, params, {"x": normal(3, 6, 3), "t": normal(4, 6, 1)})


# -------------------------------------------------------------------------------- spikes

STEPS, LEAK = 4, 0.8


def membrane(u, spike, drive):
    """The next potential: leak, reset after a spike, and input."""
    return LEAK * u * (1 - spike) + drive


def spiking(params, batch):
    """A leaky neuron: noise decides whether it fires, and its potential stays clean."""

    def step(carry, x):
        u, spike, count = carry
        u = membrane(u, spike, x @ params["w"])
        spike = (bpfree.node(u, "u") > 1.0).astype(u.dtype)
        return (u, spike, count + spike), None

    zeros = jnp.zeros_like(batch["t"])
    x = batch["x"].swapaxes(0, 1)
    count = jax.lax.scan(step, (zeros, zeros, zeros), x)[0][2]
    return (count - batch["t"]) ** 2


def smoothed_spiking(params, batch):
    """The same, exactly: a sum over all spike trains."""
    total = 0.0
    for train in itertools.product((0.0, 1.0), repeat=STEPS):
        u, spike, probability = jnp.zeros_like(batch["t"]), 0.0, 1.0
        for t, fires in enumerate(train):
            u = membrane(u, spike, batch["x"][:, t] @ params["w"])
            fired = jax.scipy.stats.norm.cdf((u - 1.0) / SIGMA)
            probability = probability * (fired if fires else 1 - fired)
            spike = fires
        total += probability * (sum(train) - batch["t"]) ** 2
    return total


def test_spiking_neuron():
    """The leak carries the clean potential on, inside the block of the node."""
    params = {"w": jnp.asarray([0.9, 0.5, -0.3])}
    batch = {"x": 1 + 0.5 * normal(0, 5, STEPS, 3), "t": jnp.arange(5.0)}
    truth = problems.gradient(smoothed_spiking, params, batch)
    tx = bpfree.likelihood_ratio(spiking, num_samples=64, sigma=SIGMA)
    passes(problems.estimates(tx, params, batch, repeats=1024), truth, resolves=0.03)
