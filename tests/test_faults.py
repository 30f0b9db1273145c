"""Numbers that go wrong inside a step are reported at the next log point, by name."""

import jax
import jax.numpy as jnp
import optax
import pytest

import bpfree
from bpfree.estimators.reading import find_state
from tests import problems
from tests.statistics import assert_close

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
ZEROS = optax.tree.zeros_like(PARAMS)
LOSS = problems.mlp_loss


def noisy(loss=LOSS, **options):
    return bpfree.node_perturbation(loss, **{"num_samples": 2, "sigma": 1e-3} | options)


def nan_batch():
    return BATCH | {"x": BATCH["x"].at[3, 1].set(jnp.nan)}


def message(state, loss=LOSS, params=PARAMS):
    return bpfree.fault_message(state, loss, params, BATCH)


def test_no_fault_no_message():
    _, state = problems.train(noisy(), PARAMS, BATCH, steps=2)
    assert message(state) is None


def test_a_nan_in_the_batch_is_reported_with_step_and_node():
    tx = noisy()
    update = jax.jit(lambda state, b: tx.update(ZEROS, state, PARAMS, batch=b)[1])
    state = update(tx.init(PARAMS), BATCH)
    state = update(state, nan_batch())
    assert message(state).startswith("step 1: node 'h' is not finite")
    state = update(update(state, BATCH), nan_batch())
    assert message(state).startswith("step 1: node 'h'")  # the first one stays


def test_nodes_that_the_estimator_leaves_out_need_not_be_valid_nodes():
    """The message is found without the marks that `nodes=` declares to be no nodes."""

    def loss(params, batch):
        bpfree.node(params["w1"].sum(0), "no batch axis")
        return bpfree.node(batch["x"] @ params["w1"], "y").sum(1)

    params = {"w1": PARAMS["w1"]}
    tx = noisy(loss, nodes=["y"])
    _, state = tx.update(None, tx.init(params), params, batch=nan_batch())
    assert message(state, loss, params).startswith("step 0: node 'y' is not finite")


@pytest.mark.parametrize(
    "broken, message_start",
    [
        ("w2", "step 0: node 'y' is not finite"),
        ("scale", "step 0: a loss is not finite although every node is"),
    ],
)
def test_a_broken_parameter_is_found_where_it_first_shows(broken, message_start):
    params = PARAMS | {broken: PARAMS[broken] * jnp.inf}
    tx = noisy()
    update = jax.jit(lambda p: tx.update(ZEROS, tx.init(PARAMS), p, batch=BATCH)[1])
    assert message(update(params)).startswith(message_start)


def test_a_gradient_that_is_not_finite_although_the_clean_pass_is():
    """The square root has no derivative at 0; the noise steps over to NaN."""

    def loss(params, batch):
        y = bpfree.node(batch["x"] @ params["w1"] * 0.0, "y")
        return jnp.sqrt(y).sum(1)

    params = {"w1": PARAMS["w1"]}
    tx = noisy(loss)
    update = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=BATCH)[1])
    text = message(update(params), loss, params)
    assert text.startswith("step 0: the clean pass is finite but the gradient")


@pytest.mark.parametrize("bad", [0.0, -0.1, jnp.nan])
def test_a_schedule_that_reaches_a_bad_sigma(bad):
    tx = noisy(sigma=lambda step: jnp.where(step < 2, 0.1, bad))
    update = jax.jit(lambda state: tx.update(ZEROS, state, PARAMS, batch=BATCH)[1])
    state = tx.init(PARAMS)
    for expected in (None, None, "step 2: sigma is not a positive number"):
        state = update(state)
        text = message(state)
        assert text == expected or text.startswith(expected)


def test_faults_of_backprop():
    tx = bpfree.backprop(LOSS)
    update = jax.jit(lambda b: tx.update(ZEROS, tx.init(PARAMS), PARAMS, batch=b)[1])
    assert message(update(BATCH)) is None
    assert message(update(nan_batch())).startswith("step 0: a loss is not finite")


def test_apply_if_finite_belongs_to_the_right_of_the_estimator():
    guard = problems.lenient(optax.apply_if_finite(optax.sgd(0.1), 5))
    chain = optax.chain(noisy(), guard)
    params, state = problems.train(chain, PARAMS, nan_batch(), steps=1)
    assert_close(params, PARAMS, rtol=0.0)
    assert int(find_state(state).fault.step) == 0


def test_a_rate_that_is_far_too_large_is_the_first_cause_and_not_sigma():
    """At step 0 this sigma was safe; what grew are the parameters."""
    tx = noisy(sigma=0.05)
    grown = jax.tree.map(lambda p: p * 1e18, PARAMS)
    update = jax.jit(lambda s, p: tx.update(ZEROS, s, p, batch=BATCH)[1])
    text = message(update(update(tx.init(PARAMS), PARAMS), grown), params=grown)
    assert text.startswith("step 1: the values of node 'h' have grown so large")
    assert "the largest parameter, " in text and "e+18" in text
    assert text.endswith("Lower the learning rate or clip the update "
                         "(optax.clip_by_global_norm).")  # fmt: skip


@pytest.mark.parametrize("rate", [1000.0, 1e20])
def test_training_at_a_learning_rate_of_1000_does_not_blame_sigma(rate):
    def loss(params, batch):
        h = jax.nn.relu(batch["x"] @ params["w1"])
        return ((h @ params["w2"]) ** 2).sum(1)

    params = {k: PARAMS[k].astype(jnp.float32) for k in ("w1", "w2")}
    batch = {"x": BATCH["x"].astype(jnp.float32)}
    tx = problems.lenient(optax.chain(noisy(loss, sigma=0.05), optax.adam(rate)))
    params, state = problems.train(tx, params, batch, steps=4)
    text = bpfree.fault_message(state, loss, params, batch)
    assert text.startswith("step 1: ") and "smallest safe sigma" not in text
    assert "ower the learning rate" in text and "the largest parameter, " in text
