"""NNX models that nobody edited; the NNX counterpart of `test_adapters.py`."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import bpfree
from tests import problems
from tests import statistics as gates
from tests.nnx_models import MODELS, Dropped, inputs, model
from tests.statistics import assert_close
from tests.test_adapters import check_draws, check_layers, loss

LABELS = jnp.asarray([0.5, -1.0, 2.0])
SIZE = 3


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """NNX's own norms ask for the common type of float64 and float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def problem(name, **options):
    made = model(name)
    batch = {"x": MODELS[name][0] if name in MODELS else inputs(3), "label": LABELS}
    objective = bpfree.supervised(made, loss, **options)
    return objective, nnx.state(made, nnx.Param), batch, made


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_a_node_and_the_pullback_is_exact(name):
    objective, params, batch, _ = problem(name)
    check_layers(objective, params, batch, MODELS[name][1])


@pytest.mark.parametrize("name", MODELS)
def test_tags_do_not_change_the_model(name):
    objective, params, batch, made = problem(name)
    classes = [type(m) for _, m in nnx.iter_modules(made)]
    before = jax.tree.map(jnp.copy, nnx.state(made))
    losses = jax.jit(objective)(params, batch)
    assert [type(m) for _, m in nnx.iter_modules(made)] == classes
    assert_close(_raw(nnx.state(made)), _raw(before), rtol=0.0)
    assert_close(losses, loss(made(batch["x"]), batch["label"]), rtol=1e-12)


def _raw(state):
    def raw(a):
        typed = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(a) if typed else a

    return jax.tree.map(raw, nnx.to_pure_dict(state))


def test_node_perturbation_of_a_model_is_its_gradient():
    objective, params, batch, _ = problem("gru")
    tx = bpfree.node_perturbation(objective, num_samples=32, sigma=1e-3)
    estimates = problems.estimates(tx, params, batch, repeats=512)
    gate = gates.mean_gate(estimates, problems.gradient(objective, params, batch))
    assert gate.passed and gate.error < 0.04, gate


def test_inputs_of_kernels_are_recorded_by_the_path_of_the_parameter():
    objective, params, batch, made = problem("mlp")
    _, values, kernel_inputs = bpfree.record(objective)(params, batch)
    assert set(kernel_inputs) == {"layers/0/kernel", "out/kernel"}
    y = kernel_inputs["out/kernel"] @ made.out.kernel[...] + made.out.bias[...][None]
    assert_close(y, values["out"], rtol=1e-10)
    blocks = bpfree.blocks(objective, params, batch)
    assert {b.params for b in blocks[:-1]} == {
        ("layers/0/bias", "layers/0/kernel"),
        ("norm/bias",),
        ("norm/scale",),
        ("out/bias", "out/kernel"),
    }
    objective, params, batch, _ = problem("embed")
    of_tokens = bpfree.record(objective)(params, batch)[2]
    assert set(of_tokens) == {"linear/kernel", "embed/embedding"}  # of attend only


def test_a_layer_alone_is_named_by_its_kernel():
    layer = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    objective = bpfree.supervised(layer, loss)
    batch = {"x": inputs(3), "label": LABELS}
    _, values, used = bpfree.record(objective)(nnx.state(layer, nnx.Param), batch)
    assert (set(values), set(used)) == ({"kernel"}, {"kernel"})


def test_the_objective_outlives_changes_of_the_model():
    objective, params, batch, made = problem("mlp")
    params = jax.tree.map(jnp.copy, params)
    before = objective(params, batch)
    nnx.update(made, jax.tree.map(jnp.zeros_like, params))
    made.out = None
    assert_close(objective(params, batch), before, rtol=0.0)


def test_dropout_draws_from_the_key():
    objective, params, batch, made = problem("dropout", rngs=("default",))
    check_draws(objective, params, batch)
    with pytest.raises(ValueError, match="no random streams .*it has .'default'"):
        bpfree.supervised(made, loss, rngs=("dropout",))


def test_a_random_stream_without_a_key_is_refused():
    objective, params, batch, made = problem("dropout")
    with pytest.raises(ValueError, match=r"Dropout draws .*rngs=\('default',\)"):
        objective(params, batch)
    made.eval()
    still = bpfree.supervised(made, loss)
    assert_close(still(params, batch), still(params, batch), rtol=0.0)
    named = Dropped(nnx.Rngs(params=0, dropout=1))
    with_key = bpfree.supervised(named, loss, rngs=("dropout",))
    assert with_key(nnx.state(named, nnx.Param), batch, jax.random.key(0)).shape == (
        SIZE,
    )


def test_wrong_arguments():
    objective, params, batch, made = problem("mlp")
    wrong = (
        nnx.state(made),
        nnx.to_pure_dict(params),
        nnx.state(model("cnn"), nnx.Param),
    )
    wrong[0]["extra"] = nnx.Param(jnp.zeros(()))
    for params in wrong:
        with pytest.raises(ValueError, match=r"nnx.state\(model, nnx.Param\)"):
            objective(params, batch)
    with pytest.raises(TypeError, match="Linen or NNX module, got function"):
        bpfree.supervised(loss, loss)


def test_a_classifier_trains_and_is_written_back():
    """On the sign of a product of two inputs, which no linear model separates."""
    x = jax.random.normal(jax.random.key(4), (64, 3), jnp.float64)
    batch = {"x": x, "label": (x[:, 0] * x[:, 1] > 0).astype(jnp.int32)}
    made = model("mlp")
    objective = bpfree.supervised(made, optax.softmax_cross_entropy_with_integer_labels)
    tx = bpfree.node_perturbation(objective, num_samples=16, sigma=1e-3)
    chain = optax.chain(tx, optax.adam(0.05))
    trained, _ = problems.train(chain, nnx.state(made, nnx.Param), batch, steps=300)
    nnx.update(made, trained)
    outputs = made(x)
    right = (outputs[:, 1] > outputs[:, 0]) == (batch["label"] == 1)
    assert float(right.mean()) > 0.9


def test_nnx_is_imported_when_it_is_needed():
    code = "import sys, bpfree; print('flax.nnx' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stdout + out.stderr
