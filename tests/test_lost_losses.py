"""Losses so large that float32 rounds away what noise changes in them: a fault."""

import jax
import jax.numpy as jnp
import pytest

import bpfree
from tests import problems

KEYS = jax.random.split(jax.random.key(0), 3)
BATCH = {"x": jax.random.normal(KEYS[0], (16, 4), jnp.float32)}
PARAMS = {
    "first": jax.random.normal(KEYS[1], (4, 5), jnp.float32) / 2,
    "last": jax.random.normal(KEYS[2], (5,), jnp.float32) / 2,
}


def outputs(params, batch):
    return jnp.tanh(batch["x"] @ params["first"]) @ params["last"]


def fault(make, loss_fn, **options):
    tx = make(loss_fn, num_samples=64, sigma=1e-2, **options)
    _, state = tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)
    return bpfree.fault_message(state, loss_fn, PARAMS, BATCH)


PREDICTED = {"example_batch": BATCH, "fit": problems.adam(1e-3)}
ESTIMATORS = [
    (bpfree.node_perturbation, {}),
    (bpfree.node_perturbation, {"layerwise": True}),
    (bpfree.likelihood_ratio, {"pairing": "clean"}),
    (bpfree.node_perturbation, {"baseline": "leave_one_out"}),
    (bpfree.node_perturbation, {"redraw": True}),
    (bpfree.iterative_node_perturbation, {}),
    (bpfree.activity_node_perturbation, {}),
    (bpfree.activity_node_perturbation, {"reference": "noisy"}),
    (bpfree.weight_perturbation, {}),
    (bpfree.weight_perturbation, {"rank": 1, "antithetic": True}),
    (bpfree.learned_feedback, {"teacher": "losses"} | PREDICTED),
    (bpfree.learned_feedback, {"shrinkage": 1.0} | PREDICTED),
]


@pytest.mark.parametrize("make, options", ESTIMATORS)
def test_differences_of_large_losses_are_lost(make, options):
    for size in (1e6, 1e9):  # most changes are lost, and all of them
        shifted = lambda p, b: outputs(p, b) ** 2 + jnp.float32(size)  # noqa: B023, E731
        assert "rounding errors: subtract a constant" in fault(make, shifted, **options)
    plain = lambda p, b: outputs(p, b) ** 2 + jnp.float32(1e2)  # noqa: E731
    assert fault(make, plain, **options) is None


def test_a_loss_that_does_not_change_is_no_fault():
    step = lambda p, b: (outputs(p, b) > 1e6).astype(jnp.float32) + 1  # noqa: E731
    assert fault(bpfree.node_perturbation, step) is None


def test_parameters_that_are_moved_in_place_have_the_same_fault():
    shifted = lambda p, b: outputs(p, b) ** 2 + jnp.float32(1e9)  # noqa: E731
    tx = bpfree.seed_replay(shifted, 0.1, num_samples=64)
    _, state = tx.step(PARAMS, tx.init(PARAMS), BATCH)
    text = bpfree.fault_message(state, shifted, PARAMS, BATCH)
    assert "rounding errors: subtract a constant" in text


def test_an_exact_derivative_takes_no_differences():
    shifted = lambda p, b: outputs(p, b) ** 2 + jnp.float32(1e7)  # noqa: E731
    assert fault(bpfree.node_perturbation, shifted, derivative="jvp") is None


def test_losses_that_have_grown_are_not_cured_by_a_constant():
    """At step 0 nothing was lost: the growth is the first cause, and the rate's doing."""
    loss = lambda p, b: outputs(p, b) ** 2 + p["shift"]  # noqa: E731
    params = PARAMS | {"shift": jnp.float32(0)}
    grown = params | {"shift": jnp.float32(1e7)}
    tx = bpfree.node_perturbation(loss, num_samples=64, sigma=1e-2)
    _, state = tx.update(None, tx.init(params), params, batch=BATCH)
    _, state = tx.update(None, state, grown, batch=BATCH)
    text = bpfree.fault_message(state, loss, grown, BATCH)
    assert text.startswith(
        "step 1: the losses have grown so large that their differences"
    )
    assert "'shift', reaches 1e+07. Lower the learning rate" in text
