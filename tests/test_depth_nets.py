"""Nets of scripts/depth.py: their data, their losses and how they are scored."""

import importlib
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.training import steps


@pytest.fixture
def nets(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    with jax.numpy_dtype_promotion("standard"):
        yield importlib.import_module("depth_nets")
    sys.modules.pop("depth_nets", None)


def start(net):
    """The state of a run before its first step."""
    made = jax.jit(lambda: steps.init_variables(net.model, jax.random.key(0), net.batch))
    params, model_state = made()
    return steps.TrainState(jnp.int32(0), params, model_state, ())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_residual_net_has_small_images_one_loss_for_each_and_a_readout(nets, norm):
    net = nets.residual(20, 1, "tiny_imagenet_20", norm, 4, dir="made-up")
    assert net.data.train["x"].shape[1:] == net.batch["x"].shape[1:] == (32, 32, 3)
    state = start(net)
    shape = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)  # noqa: E731
    assert shape(state.params) == shape(net.params)
    assert net.readout in net.params
    batch = steps.with_state(net.batch, state.model_state)
    found = jax.eval_shape(net.loss_fn, state.params, batch)
    losses = found[0] if norm == "batch" else found
    assert losses.shape == (4,)


def test_images_are_pooled_over_squares_of_pixels(nets):
    x = np.arange(2 * 4 * 4 * 1.0).reshape(2, 4, 4, 1)
    small = nets._pooled(x, 2)
    assert small.shape == (2, 2, 2, 1)
    assert small[1, 0, 1, 0] == x[1, :2, 2:, 0].mean()


def test_scores_by_slices_are_those_of_all_examples(nets, monkeypatch):
    """Accuracy of all characters and their cross-entropy in bits."""
    net = nets.causal(1, 4, 4, batch_size=2)
    state, part = start(net), jax.tree.map(lambda a: a[:10], net.data.test)
    logits = net.model.apply({"params": state.params}, part["x"])
    chances = jnp.take_along_axis(jax.nn.softmax(logits), part["label"][..., None], -1)
    monkeypatch.setattr(nets, "SLICE", 4)
    found = nets.scores(net, state, part)
    assert found["bits"] == pytest.approx(float(-jnp.log2(chances).mean()), rel=1e-5)
    right = logits.argmax(-1) == part["label"]
    assert found["accuracy"] == pytest.approx(float(right.mean()))
    losses = net.loss_fn(state.params, part)
    assert losses.shape == (10,)
    assert found["bits"] == pytest.approx(float(losses.mean()) / math.log(2), rel=1e-5)
