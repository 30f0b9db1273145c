"""Every estimator keeps the same promises about its interface."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpfree
from bpfree.sampling.seeds import words_of
from tests import problems
from tests.contract import ESTIMATORS
from tests.statistics import LIMIT, assert_close, mean_gate

every_estimator = pytest.mark.parametrize("row", ESTIMATORS, ids=lambda row: row.name)
PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()


def one_update(tx, params=PARAMS, batch=BATCH, **extra):
    zeros = optax.tree.zeros_like(params)
    return tx.update(zeros, tx.init(params), params, batch=batch, **extra)


ZEROS = optax.tree.zeros_like(PARAMS)
ROWS = {row.name: row for row in ESTIMATORS}


@functools.cache
def compiled(name):
    """An estimator, its update compiled once, and a list with an entry per trace."""
    row, traces = ROWS[name], []
    tx = row.factory(problems.mlp_loss, seed=3, **row.small)

    @jax.jit
    def update(state, updates):
        traces.append(None)
        return tx.update(updates, state, PARAMS, batch=BATCH)

    return tx, update, traces


@every_estimator
def test_parameters_have_the_agreed_names(row):
    assert getattr(bpfree, row.name) is row.factory
    parameters = inspect.signature(row.factory).parameters
    assert set(parameters) == {*row.parameters, *row.extras}
    first, *rest = parameters.values()
    assert first.name == "loss_fn"
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)


@every_estimator
def test_sigma_can_be_injected_where_there_is_one(row):
    """What `static_args` leaves over must be numbers."""
    static = bpfree.static_args(row.factory)
    make = optax.inject_hyperparams(row.factory, static_args=static)
    with jax.numpy_dtype_promotion("standard"):
        state = make(problems.mlp_loss, **row.small).init(PARAMS)
    has_one = "sigma" in inspect.signature(row.factory).parameters
    assert set(state.hyperparams) == ({"sigma"} if has_one else set())


def mixed_loss(params, batch):
    """Parameters of three dtypes, one never used, one empty container."""
    x = batch["x"].astype(jnp.float32)
    h = jnp.tanh(bpfree.node(x @ params["w"]["kernel"], "h"))
    y = bpfree.node(h @ params["low"].astype(jnp.float32), "y").astype(jnp.float64)
    return jnp.sum((y * params["wide"] - batch["t"]) ** 2, axis=1)


@every_estimator
def test_gradient_has_the_structure_shapes_and_dtypes_of_params(row):
    p = problems.mlp_params(jnp.float32)
    params = {
        "w": {"kernel": p["w1"]},
        "low": p["w2"].astype(jnp.bfloat16),
        "wide": jnp.asarray(1.5, jnp.float64),
        "unused": p["b1"],
        "empty": (),
    }
    tx = row.factory(mixed_loss, **row.small)
    gradient, state = jax.jit(lambda: one_update(tx, params))()
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
    assert not gradient["unused"].any()
    assert all(jnp.any(gradient[k] != 0) for k in ("low", "wide"))
    assert gradient["w"]["kernel"].any()
    truth = problems.gradient(mixed_loss, params, BATCH)
    np.testing.assert_allclose(
        float(state.value), float(mixed_loss(params, BATCH).mean())
    )
    assert jax.tree.structure(truth) == jax.tree.structure(gradient)


@every_estimator
def test_same_key_same_answer_other_key_other_answer(row):
    tx, update, _ = compiled(row.name)
    state = tx.init(PARAMS)
    assert_close(state.key, jax.random.key_data(jax.random.key(3)), rtol=0.0)
    first, again = (update(state, ZEROS)[0] for _ in range(2))
    other = update(state._replace(key=words_of(4)), ZEROS)[0]
    assert_close(first, again, rtol=0.0)
    same = bool(jnp.all(first["w1"] == other["w1"]))
    assert same == (row.contract == "exact")


@every_estimator
def test_seed_is_a_number_or_a_key(row):
    by_key = row.factory(problems.mlp_loss, seed=jax.random.key(3), **row.small)
    by_number = compiled(row.name)[0]
    assert_close(by_key.init(PARAMS).key, by_number.init(PARAMS).key, rtol=0.0)


@every_estimator
def test_steps_differ_but_do_not_compile_again(row):
    tx, update, traces = compiled(row.name)
    state = tx.init(PARAMS)
    gradients = []
    for _ in range(3):
        gradient, state = update(state, ZEROS)
        gradients.append(gradient["w1"])
    assert len(traces) == 1
    assert int(state.count) == 3
    assert bool(jnp.all(gradients[0] == gradients[1])) == (row.contract == "exact")


@every_estimator
def test_state_keeps_its_structure(row):
    tx, update, _ = compiled(row.name)
    before = tx.init(PARAMS)
    after = update(before, ZEROS)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert getattr(a, "weak_type", False) == getattr(b, "weak_type", False)


@every_estimator
def test_jit_equals_eager_and_extra_arguments_are_ignored(row):
    tx, update, _ = compiled(row.name)
    eager, state = one_update(tx, value=1.0, unknown=None)
    jitted, jitted_state = update(tx.init(PARAMS), ZEROS)
    assert_close(eager, jitted, rtol=1e-5, atol=1e-6)  # noise and weights are float32
    assert_close(state.value, jitted_state.value, rtol=1e-6)


@every_estimator
def test_incoming_updates_count(row):
    """What stands to the left of an estimator is added to its gradient."""
    tx, update, _ = compiled(row.name)
    state = tx.init(PARAMS)
    both = jax.tree.map(jnp.add, update(state, ZEROS)[0], PARAMS)
    assert_close(update(state, PARAMS)[0], both, rtol=1e-12)


@every_estimator
def test_the_estimate_is_the_gradient_at_small_sigma(row):
    """With default options; all of them, and large sigma, in test_gradients."""
    truth = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
    if row.contract == "exact":
        _, update, _ = compiled(row.name)
        gradient, state = update(compiled(row.name)[0].init(PARAMS), ZEROS)
        assert_close(gradient, truth, rtol=1e-12)
        assert float(state.value) == pytest.approx(
            float(problems.mlp_loss(PARAMS, BATCH).mean()), rel=1e-6
        )
        return
    small = {"sigma": 1e-3} if row.contract != "unbiased" else {}
    tx = row.factory(problems.mlp_loss, **row.trains | small)
    estimates = problems.estimates(tx, PARAMS, BATCH, repeats=1024)
    if row.contract == "descent":
        for name in set(PARAMS) - {"scale"}:  # behind the last node, and exact
            slope = mean_gate({name: estimates[name]}, {name: truth[name]})
            assert slope.slope > LIMIT * slope.error, (name, slope)
        return
    gate = mean_gate(estimates, truth)
    assert gate.passed and gate.error < 0.02, gate


@every_estimator
def test_trains_a_tiny_problem(row):
    """Regression on data that a net of the same shape made: to 2 % of the first loss."""
    target = problems.mlp_params()
    x = problems.mlp_batch(32)["x"]
    outputs = jnp.tanh(jnp.tanh(x @ target["w1"]) @ target["w2"]) * target["scale"]
    batch = {"x": x, "t": outputs}
    params = jax.tree.map(lambda p: 0.5 * p + 0.1, target)
    tx = row.factory(problems.mlp_loss, **row.trains)
    chain = optax.chain(tx, problems.adam(0.03))
    trained, _ = problems.train(chain, params, batch, steps=400)
    first = problems.mlp_loss(params, batch).mean()
    assert problems.mlp_loss(trained, batch).mean() < 0.02 * first
