"""Programs that JAX cannot look into: a NumPy function in the middle of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental import io_callback

import bpfree
from tests import problems
from tests.statistics import assert_close

BATCH = problems.mlp_batch(32)
PARAMS = {name: problems.mlp_params()[name] for name in ("w1", "w2")}


def quantise(y):
    """No derivative, and not JAX: eight levels between -2 and 2."""
    y = np.asarray(y)
    return np.round(2 * np.clip(y, -2, 2)).astype(y.dtype) / 2


def in_the_middle(quantised):
    def loss(params, batch):
        # Nobody can read what the box does with the batch axis, so the marks say it.
        h = quantised(bpfree.node(batch["x"] @ params["w1"], "h", batch_axis=0))
        y = bpfree.node(h @ params["w2"], "y", batch_axis=0)
        return ((y - batch["t"]) ** 2).sum(1)

    return loss


def on_the_host(y):
    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    return jax.pure_callback(quantise, shape, y, vmap_method="broadcast_all")


def in_jax(y):
    return jnp.round(2 * jnp.clip(y, -2, 2)) / 2


def taught():
    """Data that a net of the same shape made, and other parameters to start from."""
    h = in_jax(BATCH["x"] @ PARAMS["w1"])
    return {"x": BATCH["x"], "t": h @ PARAMS["w2"]}, jax.tree.map(
        lambda p: 0.5 * p + 0.1, PARAMS
    )


ESTIMATORS = {
    "likelihood_ratio": (bpfree.likelihood_ratio, {}),
    "anp": (bpfree.activity_node_perturbation, {}),
}


@pytest.mark.parametrize("make, options", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_black_box_in_the_middle_trains(make, options):
    batch, params = taught()
    loss = in_the_middle(on_the_host)
    tx = make(loss, num_samples=16, sigma=0.3, **options)
    trained, _ = problems.train(
        optax.chain(tx, problems.adam(0.03)), params, batch, steps=300
    )
    first = loss(params, batch).mean()
    assert loss(trained, batch).mean() < 0.1 * first


def test_the_box_gives_what_the_same_function_in_jax_gives():
    def estimate(quantised):
        tx = bpfree.likelihood_ratio(in_the_middle(quantised), num_samples=8, sigma=0.3)
        return problems.estimates(tx, PARAMS, BATCH, repeats=2)

    assert_close(estimate(on_the_host), estimate(in_jax), rtol=1e-12)


def test_the_box_has_no_derivative_to_be_taken():
    tx = bpfree.node_perturbation(in_the_middle(on_the_host), derivative="jvp")
    with pytest.raises(ValueError, match="Pure callbacks do not support JVP"):
        jax.eval_shape(lambda: tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH))


# ----------------------------------------------------------- simulators with hidden state


class Counter:
    """A simulator whose answer depends on how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, y):
        self.calls += 1
        return np.asarray(y) + 0.01 * self.calls

    def in_order(self, y):
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return io_callback(self, shape, lax.stop_gradient(y), ordered=True)


SEQUENTIAL = {
    "layerwise": (bpfree.node_perturbation, {"layerwise": True}, 1 + 2 * 4),
    "noisy": (bpfree.likelihood_ratio, {}, 1 + 4),
    "pairs": (bpfree.node_perturbation, {"antithetic": True}, 1 + 4),
    "two passes": (bpfree.activity_node_perturbation, {"reference": "noisy"}, 2 * 4),
}


@pytest.mark.parametrize("make, options, calls", SEQUENTIAL.values(), ids=SEQUENTIAL)
def test_a_simulator_with_hidden_state_is_asked_once_a_pass(make, options, calls):
    simulator = Counter()
    loss = in_the_middle(simulator.in_order)
    tx = make(loss, num_samples=4, chunk_size=1, sigma=0.3, **options)
    update = jax.jit(lambda s: tx.update(None, s, PARAMS, batch=BATCH))
    gradient, state = update(tx.init(PARAMS))
    jax.block_until_ready(gradient)
    jax.effects_barrier()
    assert simulator.calls == calls
    assert all(jnp.any(gradient[name] != 0) for name in PARAMS)
    assert bpfree.fault_message(state, loss, PARAMS, BATCH) is None


def test_side_by_side_such_a_simulator_is_refused():
    loss = in_the_middle(Counter().in_order)
    tx = bpfree.node_perturbation(loss, num_samples=4)
    with pytest.raises(ValueError, match="ordered"):
        jax.eval_shape(lambda: tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH))


def test_what_has_no_vmap_is_evaluated_one_sample_after_the_other():
    """`ragged_dot` has none with a shared weight."""

    def loss_fn(params, batch):
        sizes = jnp.array([20, 12])
        h = jnp.tanh(batch["x"] @ params["w1"])
        y = lax.ragged_dot(h, jnp.stack([params["w2"], -params["w2"]]), sizes)
        return ((y - batch["t"]) ** 2).sum(1)

    def estimate(**options):
        tx = bpfree.node_perturbation(loss_fn, num_samples=16, **options)
        return tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)[0]

    assert_close(estimate(), estimate(chunk_size=1), rtol=1e-4, atol=1e-4)
