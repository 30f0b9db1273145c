"""Models that nobody edited: every layer is a node, every parameter is reached."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

import bpfree
from tests import problems
from tests import statistics as gates
from tests.linen_models import MLP, MODELS, SIZE, Dropped, inputs
from tests.statistics import assert_close


def loss(outputs, labels):
    rows = outputs.reshape(outputs.shape[0], -1)
    return ((rows - labels[:, None]) ** 2).sum(1)


def check_layers(objective, params, batch, names):
    """All layers are nodes, shared by the batch in norms; every parameter learns."""
    sites = bpfree.nodes.trace(objective, params, batch).nodes
    assert sorted(s.name for s in sites) == sorted(names)
    shared = {s.name for s in sites if s.batch_axis is None}  # weight noise
    assert shared == {s.name for s in sites if "orm" in s.name}
    assert all(s.shape[s.batch_axis] == SIZE for s in sites if s.name not in shared)
    pulled, truth = problems.pulled_and_truth(objective, params, batch)
    assert jax.tree.structure(pulled) == jax.tree.structure(params)
    assert_close(pulled, truth, rtol=1e-9, atol=1e-12)
    for path, g in jax.tree_util.tree_leaves_with_path(truth):
        assert g.any(), jax.tree_util.keystr(path)


def check_draws(objective, params, batch):
    """Its draws are a function of the key, and the pullback uses the same ones."""
    key = jax.random.key(5)
    pulled, truth = problems.pulled_and_truth(objective, params, batch, key)
    assert_close(pulled, truth, rtol=1e-9, atol=1e-12)
    same, other = (objective(params, batch, k) for k in (key, jax.random.key(6)))
    assert_close(same, objective(params, batch, key), rtol=0.0)
    assert not jnp.allclose(same, other)


def problem(name, **options):
    model, x, _ = MODELS[name]
    batch = {"x": x, "label": jnp.asarray([0.5, -1.0, 2.0])}
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    return bpfree.supervised(model, loss, **options), params, batch


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_a_node_and_the_pullback_is_exact(name):
    objective, params, batch = problem(name)
    check_layers(objective, params, batch, MODELS[name][2])


@pytest.mark.parametrize("name", MODELS)
def test_tags_do_not_change_the_model(name):
    model = MODELS[name][0]
    objective, params, batch = problem(name)

    @jax.jit
    def both(params, batch):
        plain = loss(model.apply({"params": params}, batch["x"]), batch["label"])
        return objective(params, batch), plain

    assert_close(*both(params, batch), rtol=1e-12)


@pytest.mark.parametrize("name", ["cnn", "gru", "embed"])
def test_node_perturbation_of_a_model_is_its_gradient(name):
    objective, params, batch = problem(name)
    tx = bpfree.node_perturbation(objective, num_samples=32, sigma=1e-3)
    estimates = problems.estimates(tx, params, batch, repeats=512)
    truth = problems.gradient(objective, params, batch)
    gate = gates.mean_gate(estimates, truth)
    assert gate.passed and gate.error < 0.04, gate


def test_inputs_of_kernels_are_recorded_by_path():
    objective, params, batch = problem("mlp")
    _, values, kernel_inputs = bpfree.record(objective)(params, batch)
    assert set(kernel_inputs) == {"Dense_0/kernel", "Dense_1/kernel"}
    for layer in ("Dense_0", "Dense_1"):
        y = kernel_inputs[f"{layer}/kernel"] @ params[layer]["kernel"]
        y += params[layer]["bias"][None]
        assert_close(y, values[layer], rtol=1e-10)
    _, _, of_tokens = bpfree.record(problem("embed")[0])(*problem("embed")[1:])
    assert set(of_tokens) == {"dense/kernel", "embed/embedding"}  # of attend only


def test_what_nodes_leaves_out_belongs_to_the_next_block():
    objective, params, batch = problem("cnn")
    pulled, truth = problems.pulled_and_truth(objective, params, batch, nodes={"Dense_0"})
    assert_close(pulled, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", ["weight", "auto"])
def test_noise_goes_to_the_parameters(noise):
    """All of them, or those with fewer entries than what they make of an example."""
    model, x = nn.Conv(2, (2, 2), param_dtype=jnp.float64), inputs(5, 5, 1)
    params = model.init(jax.random.key(0), x)["params"]
    batch = {"x": x, "label": jnp.asarray([0.5, -1.0, 2.0])}
    objective = bpfree.supervised(model, loss, noise=noise)
    sites = bpfree.nodes.trace(objective, params, batch).nodes
    assert all(s.batch_axis is None for s in sites)
    last = {"bias"} if noise == "weight" else set()  # else it is in the block of the loss
    assert {s.name for s in sites} == {"kernel"} | last
    pulled, truth = problems.pulled_and_truth(objective, params, batch)
    assert_close(pulled, truth, rtol=1e-9, atol=1e-12)
    mlp, params, batch = problem("mlp", noise=noise)
    names = {s.name for s in bpfree.nodes.trace(mlp, params, batch).nodes}
    assert ("Dense_0" in names) == (noise == "auto")


def test_an_unknown_place_of_noise():
    with pytest.raises(ValueError, match="noise='logit' is unknown.*preactivation"):
        problem("mlp", noise="logit")


def test_dropout_draws_from_the_key():
    model, x = Dropped(), inputs(3)
    batch = {"x": x, "label": jnp.asarray([0.5, -1.0, 2.0])}
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    params = model.init(keys, x)["params"]
    objective = bpfree.supervised(model, loss, rngs=("dropout",))
    check_draws(objective, params, batch)
    with pytest.raises(ValueError, match="PRNG key"):
        bpfree.record(objective)(params, batch)


def test_keys_of_the_batch():
    objective, params, batch = problem("mlp")
    renamed, _, _ = problem("mlp", x="image", label="class")
    other = {"image": batch["x"], "class": batch["label"]}
    assert_close(renamed(params, other), objective(params, batch), rtol=0.0)
    with pytest.raises(KeyError, match=r"no 'label'; it has \['x'\]"):
        objective(params, {"x": batch["x"]})
    with pytest.raises(TypeError, match="must be a mapping.*got tuple"):
        objective(params, (batch["x"], batch["label"]))


def test_a_whole_variables_dict_is_refused():
    objective, params, batch = problem("mlp")
    with pytest.raises(ValueError, match="whole variables dict"):
        objective({"params": params}, batch)


def test_a_classifier_trains():
    """On the sign of a product of two inputs, which no linear model separates."""
    x = jax.random.normal(jax.random.key(4), (64, 3), jnp.float64)
    batch = {"x": x, "label": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}
    model = MLP()
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    objective = bpfree.supervised(model, cross_entropy)
    params = model.init(jax.random.key(0), x)["params"]
    tx = bpfree.node_perturbation(objective, num_samples=16, sigma=1e-3)
    chain = optax.chain(tx, problems.adam(0.05))
    trained, _ = problems.train(chain, params, batch, steps=300)
    outputs = model.apply({"params": trained}, x)
    right = (outputs[:, 1] > outputs[:, 0]) == (batch["label"] == 1)
    assert float(right.mean()) > 0.9
