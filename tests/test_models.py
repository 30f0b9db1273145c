"""The launcher's models."""

import importlib
import pkgutil
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpfree
from bpfree import models
from bpfree.data import graphs
from bpfree.models import (
    convnet,
    gcn,
    hopfield,
    mlp,
    recurrent,
    resnet,
    resnet5,
    spiking,
    vgg,
)
from tests import problems
from tests.statistics import assert_close

ROWS = jax.random.normal(jax.random.key(0), (4, 64), jnp.float32)


def test_images_and_rows_are_the_same():
    rows = convnet.Model(3, channels=(2,), image=(8, 8, 1))
    images = convnet.Model(3, channels=(2,))
    params = rows.init(jax.random.key(0), ROWS)["params"]
    logits = rows.apply({"params": params}, ROWS)
    assert logits.shape == (4, 3)
    again = images.apply({"params": params}, ROWS.reshape(4, 8, 8, 1))
    assert_close(again, logits, rtol=0.0)


def test_without_a_norm_the_pullback_is_the_gradient():
    model = convnet.Model(3, channels=(2, 2), activation="tanh", image=(8, 8, 1))
    batch = {"x": ROWS, "label": jnp.arange(4) % 3}
    params = model.init(jax.random.key(0), ROWS)["params"]
    loss = optax.softmax_cross_entropy_with_integer_labels
    objective = bpfree.supervised(model, loss, train=True)
    with jax.numpy_dtype_promotion("standard"):
        pulled, truth = problems.pulled_and_truth(objective, params, batch)
    assert_close(pulled, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm": "layer"}, "norm='layer' is unknown.*'none', 'batch'"),
        ({"activation": "step"}, "activation='step' is unknown; choose one of .'relu"),
        ({"image": ()}, r"examples of shape \(64,\) are no images: set image="),
    ],
)
def test_mistakes(fields, message):
    model = convnet.Model(3, **{"image": (8, 8, 1), **fields})
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), ROWS)


FREE = ("graph", "dir", "name")  # texts that are no choice among a few


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(models.__path__)])
def test_choices_are_literals(name):
    """Which an editor lists, and a config's mistakes are held against."""
    model = importlib.import_module(f"bpfree.models.{name}").Model
    hints = get_type_hints(model)
    assert {field for field, kind in hints.items() if kind is str} <= set(FREE)


@pytest.mark.parametrize(
    "literal, functions",
    [
        (mlp.Activation, mlp.ACTIVATIONS),
        (recurrent.Cell, recurrent.CELLS),
        (resnet.Layers, resnet.LAYERS),
        (hopfield.Pool, hopfield.POOLS),
    ],
)
def test_every_choice_has_what_it_names(literal, functions):
    assert set(get_args(literal)) == set(functions)


# -------------------------------------------------------------------- other architectures


def pulled_close_to_truth(model, x, num_classes, **options):
    """Noise at no node and exact signals: the blocks hold all of the gradient."""
    batch = {"x": x, "label": jnp.arange(len(x)) % num_classes}
    params = model.init(jax.random.key(0), x)["params"]
    loss = optax.softmax_cross_entropy_with_integer_labels
    objective = bpfree.supervised(model, loss, train=True)
    with jax.numpy_dtype_promotion("standard"):
        pulled, truth = problems.pulled_and_truth(objective, params, batch)
    assert_close(pulled, truth, **options)


VGG8 = vgg.Model(10, stages=((16, 16), (32, 32), (64, 64)), pool="max", hidden=(256,))


@pytest.mark.parametrize("model, count", [(resnet5.Model(10), 20_410), (VGG8, 337_050)])
def test_convnets_of_the_papers(model, count):
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    made = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == count
    logits = jax.eval_shape(model.apply, {"params": made}, x)
    assert logits.shape == (2, 10)


WORDS = jnp.array([[3, 4, 0, 0], [1, 2, 5, 6]])


@pytest.mark.parametrize("cell", recurrent.CELLS)
def test_recurrent_cells(cell):
    model = recurrent.Model(3, cell=cell, hidden=3, vocabulary=7, features=2)
    pulled_close_to_truth(model, WORDS, 3, rtol=1e-4, atol=1e-6)
    batch = {"x": WORDS, "label": jnp.arange(2)}
    loss = optax.softmax_cross_entropy_with_integer_labels
    objective = bpfree.supervised(model, loss)
    params = model.init(jax.random.key(0), WORDS)["params"]
    blocks = bpfree.blocks(objective, params, batch)
    assert sum(block.carried for block in blocks) == 0  # nothing runs back through time
    sums = {"rnn": 1, "gru": 4, "lstm": 4}[cell]  # of an input's and a state's product
    assert len(blocks) == 1 + sums + 1 + 1  # the embedding, them, the readout, the loss


def test_words_behind_the_end_do_not_count():
    model = recurrent.Model(3, hidden=3, vocabulary=7, features=2)
    params = model.init(jax.random.key(0), WORDS)
    short = model.apply(params, WORDS[:1, :2])
    assert_close(model.apply(params, WORDS[:1]), short, rtol=1e-6)


def test_recurrent_mistakes():
    with pytest.raises(ValueError, match="cell='gur' is unknown; choose one of"):
        recurrent.Model(3, cell="gur").init(jax.random.key(0), ROWS)
    with pytest.raises(ValueError, match="are no sequences: set vocabulary="):
        recurrent.Model(3).init(jax.random.key(0), ROWS)


def test_rate_coding():
    x = jnp.array([[0.0, 0.25, 0.5, 1.0]], jnp.float32)
    trains = spiking.rate(x, 4)
    assert_close(trains.sum(1), 4 * x, rtol=0.0)
    assert set(trains.reshape(-1).tolist()) == {0.0, 1.0}


def test_spiking_units_follow_their_equation():
    model = spiking.Model(2, hidden=(3,), coding="none", decay=0.8)
    x = jax.random.normal(jax.random.key(1), (2, 6, 4), jnp.float32) * 3
    params = model.init(jax.random.key(0), x)["params"]
    kernels = [np.asarray(params[k]["kernel"]) for k in ("Dense_0", "Dense_1")]
    v = s = np.zeros((2, 3))
    spikes = []
    for current in np.moveaxis(np.asarray(x) @ kernels[0], 1, 0):
        v = 0.8 * v * (1 - s) + current
        s = (v > 1).astype(float)
        spikes.append(s)
    assert 0 < np.mean(spikes) < 1
    logits = np.mean(spikes, 0) @ kernels[1]
    assert_close(model.apply({"params": params}, x), logits, rtol=1e-5, atol=1e-6)


def test_spikes_have_no_derivative_but_for_the_surrogate():
    u = jnp.array([-0.5, 0.5], jnp.float32)
    assert jax.grad(lambda u: spiking.fire(u).sum())(u).tolist() == [0, 0]
    slope = jax.grad(lambda u: spiking.fire(u, 2.0).sum())(u)
    assert_close(slope, jnp.array([0.25, 0.25], jnp.float32), rtol=1e-6)
    assert spiking.fire(u, 2.0).tolist() == spiking.fire(u).tolist() == [0, 1]
    with pytest.raises(ValueError, match="coding='morse' is unknown; choose one of"):
        spiking.Model(2, coding="morse").init(jax.random.key(0), ROWS)


@pytest.fixture
def ring(monkeypatch):
    """A ring of eight nodes in the place of Cora."""
    edges = np.stack([np.arange(8), (np.arange(8) + 1) % 8])
    features = np.random.default_rng(0).uniform(size=(8, 5)).astype(np.float32)
    graph = graphs.normalised(features, edges)
    monkeypatch.setattr(graphs, "graph", lambda name, dir="": graph)
    return graph


def test_propagation_is_the_normalised_adjacency(ring):
    adjacency = np.eye(8) + np.roll(np.eye(8), 1, 0) + np.roll(np.eye(8), -1, 0)
    values = jnp.asarray(ring.features)
    assert_close(gcn.propagate(ring, values), adjacency / 3 @ ring.features, rtol=1e-5)


def test_graph_network_with_and_without_local_credit(ring):
    model = gcn.Model(3, "cora", hidden=(4,))
    batch = {"x": jnp.array([6, 1, 4]), "label": jnp.array([0, 2, 1])}
    params = model.init(jax.random.key(0), batch["x"])["params"]
    objective = model.objective()
    logits = model.apply({"params": params}, batch["x"])
    mean = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    assert_close(objective(params, batch).mean(), mean, rtol=1e-6)
    reports = [
        bpfree.diagnostics.measure(
            bpfree.node_perturbation(
                objective, num_samples=64, sigma=1e-3, layerwise=True, credit=credit
            ),
            params,
            batch,
            repeats=24,
        ).overall
        for credit in (None, gcn.local_credit("cora"))
    ]
    for report in reports:
        assert abs(report.slope - 1) < 5 * report.slope_error
    assert reports[1].variance < 0.8 * reports[0].variance
