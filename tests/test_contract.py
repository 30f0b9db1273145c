"""Every public constructor keeps the same promises about its interface."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import bpfree
from bpfree.sampling.seeds import words_of
from tests import problems
from tests.contract import ESTIMATORS, FURTHER, WRAPPERS
from tests.statistics import LIMIT, assert_close, mean_gate

ALL = ESTIMATORS + FURTHER + WRAPPERS
every_row = pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
every_seeded = pytest.mark.parametrize(
    "row", ESTIMATORS + FURTHER, ids=lambda row: row.name
)
every_estimator = pytest.mark.parametrize("row", ESTIMATORS, ids=lambda row: row.name)
PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()


def one_update(tx, params=PARAMS, batch=BATCH, **extra):
    zeros = optax.tree.zeros_like(params)
    return tx.update(zeros, tx.init(params), params, batch=batch, **extra)


ROWS = {row.name: row for row in ALL}


class Compiled(NamedTuple):
    """A constructor's transformation on its own problem.

    `update` is compiled once; `traces` has an entry per trace.
    """

    tx: optax.GradientTransformationExtraArgs
    update: Callable
    traces: list
    params: Any
    zeros: Any
    batch: Any


@functools.cache
def compiled(name):
    row, traces = ROWS[name], []
    objective, params, batch = row.problem()
    seed = {"seed": 3} if "seed" in row.parameters else {}
    tx = row.factory(objective, **seed, **row.small)

    @jax.jit
    def update(state, updates):
        traces.append(None)
        return tx.update(updates, state, params, batch=batch)

    zeros = optax.tree.zeros_like(params)
    return Compiled(tx, update, traces, params, zeros, batch)


def test_every_public_constructor_has_a_row():
    def makes_one(value):
        made = inspect.isfunction(value) and inspect.signature(value).return_annotation
        return inspect.isclass(made) and issubclass(made, optax.GradientTransformation)

    public = {name for name in bpfree.__all__ if makes_one(getattr(bpfree, name))}
    assert public == set(ROWS)


@every_row
def test_parameters_have_the_agreed_names(row):
    assert getattr(bpfree, row.name) is row.factory
    parameters = inspect.signature(row.factory).parameters
    assert set(parameters) == {*row.parameters, *row.extras}
    by_name = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert tuple(n for n in parameters if n not in by_name) == row.positional


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


@pytest.mark.quick
@every_row
def test_updates_have_the_shapes_and_dtypes_of_params(row):
    made = compiled(row.name)
    updates = made.update(made.tx.init(made.params), made.zeros)[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, made.params)


def same(a, b):
    """Whether all leaves are equal, bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(bool(jnp.all(x == y)) for x, y in pairs)


@every_seeded
def test_same_key_same_answer_other_key_other_answer(row):
    made = compiled(row.name)
    state = made.tx.init(made.params)
    assert_close(state.key, jax.random.key_data(jax.random.key(3)), rtol=0.0)
    first, again = (made.update(state, made.zeros)[0] for _ in range(2))
    other = made.update(state._replace(key=words_of(4)), made.zeros)[0]
    assert_close(first, again, rtol=0.0)
    assert same(first, other) == (row.contract in ("exact", "nudged"))


@every_seeded
def test_seed_is_a_number_or_a_key(row):
    made, objective = compiled(row.name), row.problem()[0]
    by_key = row.factory(objective, seed=jax.random.key(3), **row.small)
    keys = [tx.init(made.params).key for tx in (by_key, made.tx)]
    assert_close(*keys, rtol=0.0)


@every_row
def test_steps_differ_but_do_not_compile_again(row):
    made = compiled(row.name)
    state = made.tx.init(made.params)
    gradients = []
    for _ in range(3):
        gradient, state = made.update(state, made.zeros)
        gradients.append(gradient)
    assert len(made.traces) == 1
    assert int(state.count) == 3
    assert same(*gradients[:2]) == (row.contract in ("exact", "nudged"))


@every_row
def test_state_keeps_its_structure(row):
    made = compiled(row.name)
    before = made.tx.init(made.params)
    after = made.update(before, made.zeros)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert getattr(a, "weak_type", False) == getattr(b, "weak_type", False)


@every_row
def test_states_are_plain_arrays(row):
    """A state comes back from bytes and goes on with the same numbers."""
    made = compiled(row.name)
    state = made.update(made.tx.init(made.params), made.zeros)[1]
    empty = made.tx.init(made.params)
    again = serialization.from_bytes(empty, serialization.to_bytes(state))
    again = jax.tree.map(jnp.asarray, again)
    assert_close(again, state, rtol=0.0)
    first, second = (made.update(s, made.zeros)[0] for s in (state, again))
    assert_close(first, second, rtol=0.0)


@every_row
def test_jit_equals_eager_and_extra_arguments_are_ignored(row):
    made = compiled(row.name)
    extra = {"value": 1.0, "unknown": None}
    eager, state = one_update(made.tx, made.params, made.batch, **extra)
    jitted, jitted_state = made.update(made.tx.init(made.params), made.zeros)
    assert_close(eager, jitted, rtol=1e-5, atol=1e-6)  # noise and weights are float32
    if hasattr(state, "value"):
        assert_close(state.value, jitted_state.value, rtol=1e-6)


@every_seeded
def test_incoming_updates_count(row):
    """What stands to the left of an estimator is added to its gradient."""
    made = compiled(row.name)
    state = made.tx.init(made.params)
    both = jax.tree.map(jnp.add, made.update(state, made.zeros)[0], made.params)
    assert_close(made.update(state, made.params)[0], both, rtol=1e-12)


@every_estimator
def test_the_estimate_is_the_gradient_at_small_sigma(row):
    """With default options; all of them, and large sigma, in test_gradients."""
    truth = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
    if row.contract == "exact":
        made = compiled(row.name)
        gradient, state = made.update(made.tx.init(PARAMS), made.zeros)
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
