"""Iterative and activity-based node perturbation, and the two noisy passes."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import io_callback

import bpfree
from bpfree.estimators import normalized, runs
from bpfree.program import tags
from bpfree.sampling.noise import draw_chunk
from tests import problems, programs
from tests import statistics as gates

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
LINEAR = problems.linear_params()
CREDITED = ("w1", "b1", "w2", "b2")  # `scale` is behind the last node
inp, anp = bpfree.iterative_node_perturbation, bpfree.activity_node_perturbation


def estimates(make, repeats, loss=problems.mlp_loss, params=PARAMS, **options):
    options = {"num_samples": 8, "sigma": 1e-3} | options
    return problems.estimates(make(loss, **options), params, BATCH, repeats)


def only(tree, names):
    return {name: tree[name] for name in names}


# ----------------------------------------------------------------------- identities


def test_with_signs_iterative_is_layerwise_node_perturbation():
    """The length of random signs is fixed, so there is nothing to normalise."""
    a = estimates(inp, 2, noise="rademacher", sigma=0.1)
    b = estimates(bpfree.node_perturbation, 2, layerwise=True, sigma=0.1)
    gates.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_of_one_node_activity_based_is_iterative():
    a, b = (estimates(make, 2, problems.linear_loss, LINEAR) for make in (inp, anp))
    gates.assert_close(a, b, rtol=1e-6)


@pytest.mark.parametrize("norm", get_args(normalized.Norm))
def test_the_weights_are_those_of_the_equation(norm):
    """n dL / (B ||da||^2), of nodes of any shape, one of them shared by the batch."""
    random = np.random.default_rng(0)
    shapes = {"first": (5, 3), "behind": (2, 5), "shared": (4,)}
    axes = {"first": 0, "behind": 1, "shared": None}
    nodes = [tags.Site(k, "node", axes[k], shapes[k], jnp.float64) for k in shapes]
    moved = {k: random.normal(size=(2, *shape)) for k, shape in shapes.items()}
    losses = random.normal(size=(2, 5))
    squares = {
        "first": (moved["first"] ** 2).sum(2),
        "behind": (moved["behind"] ** 2).sum(1),
        "shared": (moved["shared"] ** 2).sum(1, keepdims=True) + np.zeros((2, 5)),
    }
    counts = {"first": 3, "behind": 2, "shared": 4}
    if norm == "global":
        squares = dict.fromkeys(squares, sum(squares.values()))
        counts = dict.fromkeys(counts, 9)
    found = normalized.weigh(
        jnp.asarray(losses), jax.tree.map(jnp.asarray, moved), nodes, norm
    )
    for k in shapes:
        expected = counts[k] * losses / (5 * squares[k])
        np.testing.assert_allclose(found[k], expected, rtol=1e-12, err_msg=k)


def test_noise_of_any_scale_gives_the_same_estimate():
    """And the exact derivative along it: A5 and A6 of the dossier, in float64."""
    sigmas = jnp.asarray([1e-5, 1e-4, 1e-3])

    def at(make, i, **options):
        options = {"num_samples": 4, "sigma": lambda step: sigmas[step]} | options
        tx = make(problems.mlp_loss, **options)
        state = tx.init(PARAMS)._replace(count=i)
        return tx.estimator.estimate(jax.random.key(0), PARAMS, BATCH, state).gradient

    @jax.jit
    def both(i):
        exact = {"derivative": "jvp", "noise": "gaussian"}
        makes = (bpfree.node_perturbation, inp, anp)
        measured = [at(make, i, noise="gaussian") for make in makes]
        return measured, [at(make, i, **exact) for make in makes]

    runs = [both(i) for i in range(3)]
    for i in range(3):
        smallest, middle, largest = (measured[i] for measured, _ in runs)
        exact = runs[0][1][i]
        assert gates.relative_error(smallest, exact) < 1e-3
        assert gates.relative_error(middle, largest) < 0.01
        assert gates.relative_error(smallest, largest) > 0  # so sigma was used


# ---------------------------------------------------------------- what is estimated


def by_sigma(losses, moved, nodes, scale):
    """dL / (B sigma^2): the estimators without their normalisation."""
    return {s.name: losses / (losses.shape[1] * 1e-6) for s in nodes}


def law(params):
    """The law of activity-based node perturbation: sum_l J_l^T Cov(da_l) g_l."""
    injected = bpfree.inject(problems.mlp_loss)
    values, pull = bpfree.pullback(problems.mlp_loss)(params, BATCH)[1:]
    zeros = jax.tree.map(jnp.zeros_like, values)
    g = jax.grad(lambda d: injected(params, BATCH, d)[0].mean())(zeros)
    reached = jax.jacobian(lambda h: injected(params, BATCH, zeros | {"h": h})[1]["y"])
    jacobian = jnp.einsum("biBj->bij", reached(zeros["h"]))  # y_b by h_b, summed over B
    spread = jnp.einsum("bij,bkj,bk->bi", jacobian, jacobian, g["y"])
    return pull({"h": g["h"], "y": g["y"] + spread})


def test_activity_based_is_the_gradient_times_the_covariance(monkeypatch):
    """A2: exactly, and the gate tells it from the gradient."""
    monkeypatch.setattr(normalized, "weigh", by_sigma)
    found = estimates(anp, 2048, num_samples=32)
    gate = gates.mean_gate(found, jax.jit(law)(PARAMS))
    assert gate.passed and gate.error < 0.02, gate
    assert not gates.mean_gate(found, TRUTH).passed


def test_at_the_first_node_it_is_node_perturbation(monkeypatch):
    """A4, exactly: nothing arrives there but the node's own noise."""
    monkeypatch.setattr(normalized, "weigh", by_sigma)
    a = estimates(anp, 2)
    b = estimates(bpfree.node_perturbation, 2, noise="gaussian")
    gates.assert_close(only(a, ["w1", "b1"]), only(b, ["w1", "b1"]), rtol=1e-4, atol=1e-4)
    assert gates.relative_error(only(a, ["w2"]), only(b, ["w2"])) > 0.1


def test_a_norm_for_each_layer_has_the_scale_of_the_first():
    """The global norm takes too little for it (A1 of the dossier: 0.33 in a deep net)."""
    first = ["w1", "b1"]
    own, shared = (estimates(anp, 1024, norm=norm) for norm in ("per_layer", "global"))
    gate = gates.mean_gate(only(own, first), only(TRUTH, first))
    assert gate.passed and gate.error < 0.03, gate
    assert gates.mean_gate(only(shared, first), only(TRUTH, first)).z < -gates.LIMIT


LINEAR_READOUT = {
    "iterative": (inp, {}),
    "per layer": (anp, {"norm": "per_layer", "derivative": "jvp"}),
    "two noisy passes": (anp, {"reference": "noisy", "sigma": 1.0}),
}


@pytest.mark.parametrize("make, options", LINEAR_READOUT.values(), ids=LINEAR_READOUT)
def test_a_linear_readout_gets_its_gradient(make, options):
    """A11. A quadratic loss of one node: two noisy passes at any sigma."""
    found = estimates(make, 2048, problems.linear_loss, LINEAR, **options)
    truth = problems.gradient(problems.linear_loss, LINEAR, BATCH)
    gate = gates.mean_gate(found, truth)
    assert gate.passed and gate.error < 0.02, gate


@pytest.mark.parametrize("loss", [programs.shared_value, programs.one_loss])
def test_values_of_the_whole_batch(loss):
    """A node without a batch axis, and one loss for all: every value counts."""
    found = estimates(inp, 1024, loss, sigma=1e-4)
    gate = gates.mean_gate(found, problems.gradient(loss, PARAMS, BATCH))
    assert gate.passed and gate.error < 0.05, gate


def test_variance_falls_with_the_batch():
    """A8: the batch twice has twice as many independent draws."""
    once = estimates(anp, 512)
    tx = anp(problems.mlp_loss, num_samples=8, sigma=1e-3)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), BATCH)
    more = problems.estimates(tx, PARAMS, twice, 512)
    assert abs(gates.variance_z(once, more, ratio=2.0)) < gates.LIMIT


# --------------------------------------------------- noise that cannot be switched off


def device_loss(mean):
    """A layer whose output is read from a device with noise of its own."""

    def loss(params, batch, key):
        own = 1e-3 * (mean + jax.random.normal(key, batch["t"].shape, jnp.float64))
        h = jnp.tanh(bpfree.node(batch["x"] @ params["w1"] + own, "h"))
        return (h @ params["w2"] - batch["t"]).sum(1) ** 2

    return loss


def mean_direction(make, loss, **options):
    params = only(PARAMS, ["w1", "w2"])
    tx = make(loss, num_samples=64, **options)
    found = problems.estimates(tx, params, BATCH, 64)["w1"]
    return found.mean(0).ravel()


def cosine(a, b):
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def test_the_mean_of_the_noise_does_not_matter_to_two_passes():
    """A10: ten times its standard deviation."""
    options = {"reference": "noisy", "sigma": None}
    centred, shifted = (
        mean_direction(anp, device_loss(mean), **options) for mean in (0.0, 10.0)
    )
    assert cosine(centred, shifted) > 0.95


def test_the_mean_of_the_noise_matters_to_one_clean_pass(monkeypatch):
    """The same noise read off against a clean pass: its mean is taken for a signal."""

    def shifted(*args):
        return jax.tree.map(lambda z: z + 10.0, draw_chunk(*args))

    def loss(params, batch):
        return device_loss(0.0)(params, batch, jax.random.key(0))

    options = {"noise": "gaussian", "sigma": 1e-3}
    right = mean_direction(bpfree.node_perturbation, loss, **options)
    monkeypatch.setattr(runs, "draw_chunk", shifted)
    wrong = mean_direction(bpfree.node_perturbation, loss, **options)
    assert cosine(right, wrong) < 0.95


SCALE = 0.1  # of the device's noise, whose mean is as large


class Device:
    """Adds noise that nobody can read, repeat or switch off."""

    def __init__(self):
        self.calls = 0
        self.random = np.random.default_rng(0)

    def noise(self, y, key):
        self.calls += 1
        return SCALE * (1.0 + self.random.normal(size=y.shape))

    def __call__(self, y, key):
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        key = jax.random.key_data(key)
        return y + lax.stop_gradient(
            io_callback(self.noise, shape, lax.stop_gradient(y), key)
        )


def layers(params, batch, key, device):
    keys = jax.random.split(key)
    h = device(batch["x"] @ params["w1"], keys[0])
    h = jnp.tanh(bpfree.node(h, "h", batch_axis=0))  # a device's axes cannot be read
    y = bpfree.node(device(h @ params["w2"], keys[1]), "y", batch_axis=0)
    return ((jnp.tanh(y) * params["scale"] - batch["t"]) ** 2).sum(1)


def trained_on_a_device(make, **options):
    """Loss after 200 steps over the first one, by the mean of the noise; the device."""
    target = only(PARAMS, ["w1", "w2", "scale"])
    x = problems.mlp_batch(32)["x"]
    h = jnp.tanh(x @ target["w1"] + SCALE)
    batch = {"x": x, "t": jnp.tanh(h @ target["w2"] + SCALE) * target["scale"]}
    params = jax.tree.map(lambda p: 0.5 * p + 0.1, target)
    device = Device()
    loss = lambda params, batch, key: layers(params, batch, key, device)  # noqa: E731
    chain = optax.chain(make(loss, **options), problems.adam(0.03))
    found, _ = problems.train(chain, params, batch, steps=200)

    def quiet(params):
        key = jax.random.key(0)
        return layers(params, batch, key, lambda y, key: y + SCALE).mean()

    return float(quiet(found) / quiet(params)), device


def test_two_noisy_passes_train_what_one_clean_pass_does_not():
    """NP's difference to its one pass without injected noise drowns in the device's."""
    ratio, device = trained_on_a_device(anp, reference="noisy", sigma=None, num_samples=8)
    assert ratio < 0.05
    assert device.calls == 200 * 8 * 2 * 2  # steps, pairs, passes, layers
    ratio, _ = trained_on_a_device(bpfree.node_perturbation, num_samples=16, sigma=1e-3)
    assert ratio > 0.3


def test_what_two_passes_report():
    """Value, aux and faults are those of the first passes; chunks change nothing."""

    def loss(params, batch, key):
        y = bpfree.node(batch["x"] @ params["w1"], "y")
        y = y + 0.1 * jax.random.normal(key, y.shape, jnp.float64)
        losses = 0.5 * jnp.sum((y - batch["t"]) ** 2, axis=1)
        return losses, {"seen": y.mean(), "count": batch["count"]}

    batch = BATCH | {"count": jnp.int32(7)}

    @jax.jit
    def update(batch):
        made = [
            anp(
                loss,
                reference="noisy",
                num_samples=4,
                chunk_size=chunk_size,
                example_batch=batch,
            )
            for chunk_size in (1, 3)
        ]
        return [tx.update(None, tx.init(LINEAR), LINEAR, batch=batch) for tx in made]

    (gradient, state), (same, _) = update(batch)
    gates.assert_close(gradient, same, rtol=1e-6)
    clean = float(problems.linear_loss(LINEAR, BATCH).mean())
    assert 0 < abs(float(state.value) - clean) < 0.5
    aux = bpfree.aux(state)
    assert int(aux["count"]) == 7
    assert 0 < abs(aux["seen"] - (BATCH["x"] @ LINEAR["w1"]).mean()) < 0.1
    bad = batch | {"x": BATCH["x"].at[0, 0].set(jnp.nan)}
    state = update(bad)[0][1]
    message = bpfree.fault_message(state, loss, LINEAR, batch)
    assert message.startswith("step 0: node 'y' is not finite")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sigma": None}, "needs reference='noisy'"),
        ({"sigma": None, "reference": "noisy"}, "third argument `key`"),
        ({"reference": "noisy", "antithetic": True}, "no antithetic pairs"),
        ({"reference": "noisy", "derivative": "jvp"}, "need a clean one"),
        ({"reference": "dirty"}, "reference='dirty' is unknown"),
        ({"norm": "local"}, "norm='local' is unknown"),
        ({"noise": "laplace"}, "noise='laplace' is unknown"),
        ({"sigma": -1.0}, "must be a positive number"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        anp(problems.mlp_loss, **options)
