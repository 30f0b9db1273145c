"""Attention models: their equations, and what the blocks between their nodes hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree.estimators import predictors
from bpfree.models import transformer, vit
from bpfree.program import passes
from bpfree.program.trace import trace
from bpfree.training.loss_functions import cross_entropy
from tests import problems
from tests.statistics import assert_close

ROWS = jax.random.normal(jax.random.key(0), (3, 32))
SYMBOLS = jax.random.randint(jax.random.key(1), (3, 4), 0, 5)
VIT = vit.Model(5, width=4, depth=1, heads=2, image=(4, 8, 1))
CAUSAL = transformer.Model(5, width=4, depth=1, heads=2)
CASES = {
    "vit": (VIT, {"x": ROWS, "label": jnp.array([1, 0, 4])}),
    "causal": (CAUSAL, {"x": SYMBOLS, "label": (SYMBOLS + 1) % 5}),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def objective_of(name):
    def loss(outputs, label):
        return cross_entropy(outputs, label).reshape(len(label), -1).mean(1)

    return bpfree.supervised(CASES[name][0], loss, train=True)


@functools.cache
def params_of(name):
    """In float64; call it under standard promotion."""
    model, batch = CASES[name]
    params = jax.jit(model.init)(jax.random.key(0), batch["x"])["params"]
    return jax.tree.map(lambda a: a.astype(jnp.float64), params)


def test_attention_is_its_equation():
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 5, 6))
    attention = jax.jit(transformer.attention, static_argnums=(3, 4))
    for causal in (False, True):
        found = np.asarray(attention(query, key, value, 3, causal))
        for b, t, head in np.ndindex(2, 5, 3):
            part, steps = slice(2 * head, 2 * head + 2), t + 1 if causal else 5
            scores = key[b, :steps, part] @ query[b, t, part] / 2**0.5
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed = shares @ value[b, :steps, part]
            np.testing.assert_allclose(found[b, t, part], mixed, rtol=1e-9)


def test_nothing_is_read_from_behind():
    variables = {"params": params_of("causal")}
    apply = jax.jit(lambda x: CAUSAL.apply(variables, x))
    logits, changed = apply(SYMBOLS), apply(SYMBOLS.at[:, 2].add(1) % 5)
    assert_close(changed[:, :2], logits[:, :2], rtol=1e-9)
    assert float(jnp.abs(changed[:, 2:] - logits[:, 2:]).min(-1).max()) > 1e-3


def test_patches_are_the_squares_of_the_image():
    image = jnp.arange(64.0).reshape(1, 4, 8, 2)
    found = vit.patches(image, 2)
    assert found.shape == (1, 8, 8)
    for i, j in np.ndindex(2, 4):
        square = image[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(-1)
        np.testing.assert_array_equal(found[0, 4 * i + j], square)


@pytest.mark.parametrize("name", CASES)
def test_no_block_carries_a_signal_and_all_kernels_have_one(name):
    model, batch = CASES[name]
    params = jax.eval_shape(model.init, jax.random.key(0), batch["x"])["params"]
    blocks = bpfree.blocks(objective_of(name), params, batch)
    kernels = [path for block in blocks for path in block.params if "kernel" in path]
    assert sorted(kernels) == sorted(set(kernels))  # each in one block
    assert len(kernels) == len(blocks) - 1 == 2 + 6 * model.depth
    assert [b.carried for b in blocks] == [0] * len(blocks)
    assert [b.products for b in blocks] == [1] * len(kernels) + [0]


@pytest.mark.parametrize("name", ["causal", pytest.param("vit", marks=pytest.mark.slow)])
def test_feedback_through_the_models_own_weights_is_the_gradient(name):
    """Blocks and their chain, attention between them, hold all of the gradient."""
    objective, params, batch = objective_of(name), params_of(name), CASES[name][1]

    @jax.jit
    def both(params, batch):
        traced = trace(objective, params, batch)
        losses, values, pull = passes.cut_vjp(traced, (params, batch))
        clean = predictors.Clean(traced, (params, batch), values)
        found = predictors.chained().predict(params, clean)
        signals = jax.tree.map(lambda g: g / len(losses), found)
        return pull(signals), problems.gradient(objective, params, batch)

    gradient, truth = both(params, batch)
    assert_close(gradient, truth, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (transformer.Model(5, width=6), SYMBOLS, "width=6 must be a multiple of heads=4"),
        (transformer.Model(5), SYMBOLS[0], "are no rows of numbers"),
        (vit.Model(5, patch=3, image=(4, 8, 1)), ROWS, "side 3 do not divide 4 x 8"),
        (vit.Model(5), ROWS, r"examples of shape \(32,\) are no images"),
    ],
)
def test_mistakes(model, x, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), x)
