"""The gates accept the truth and reject faults planted in the library itself.

Each fault has been found in published code; the names in brackets are where.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree.estimators import runs
from bpfree.sampling import noise
from bpfree.sampling.noise import draw_chunk
from tests import problems
from tests import statistics as gates

SIGMA, SAMPLES, REPEATS = 1e-3, 16, 512
PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)


def node_perturbation(batch=BATCH, num_samples=SAMPLES):
    tx = bpfree.node_perturbation(
        problems.mlp_loss, num_samples=num_samples, sigma=SIGMA, noise="gaussian"
    )
    return problems.estimates(tx, PARAMS, batch, REPEATS)


@pytest.fixture(scope="module")
def right():
    return node_perturbation()


def behind_nodes(estimates, factor):
    """A fault in the credit; it leaves the block behind the last node alone."""
    return {k: v if k == "scale" else factor * v for k, v in estimates.items()}


def test_the_gate_accepts_the_truth_and_can_resolve_a_tenth(right):
    gate = gates.mean_gate(right, TRUTH)
    assert gate.passed, gate
    assert gate.error < 0.02, gate


@pytest.mark.parametrize(
    "factor",
    [1.1, 0.9, -1.0, SIGMA, 1 / SIGMA],
    ids=[
        "10% more",
        "10% less",
        "sign",
        "no 1/sigma [verl]",
        "1/sigma too many [torchopt]",
    ],
)
def test_the_gate_rejects_a_wrong_scale(right, factor):
    gate = gates.mean_gate(behind_nodes(right, factor), TRUTH)
    assert not gate.passed, gate
    assert abs(gate.z) > gates.LIMIT, gate


def test_the_gate_rejects_one_missing_parameter(right):
    estimates = right | {"b1": 0.0 * right["b1"]}
    assert not gates.mean_gate(estimates, TRUTH).passed


def test_the_gate_rejects_a_wrong_parameter_behind_the_last_node(right):
    gate = gates.mean_gate(right | {"scale": 1.01 * right["scale"]}, TRUTH)
    assert not gate.fixed and not gate.passed


def test_the_gate_rejects_estimates_that_are_not_independent(right):
    copies = jax.tree.map(lambda g: jnp.tile(g[:8], (64, *[1] * (g.ndim - 1))), right)
    assert not gates.mean_gate(copies, TRUTH).passed


def test_the_gate_rejects_the_mean_loss_for_every_example(monkeypatch):
    """[nodepert]: only 1/B of the signal is left."""
    weigh = runs.weigh

    def planted(run):
        def mean_loss(draws, losses):
            weights = weigh(run)(draws, losses)
            return jnp.broadcast_to(weights.mean(1, keepdims=True), weights.shape)

        return mean_loss

    monkeypatch.setattr(runs, "weigh", planted)
    assert abs(gates.mean_gate(node_perturbation(), TRUTH).z) > gates.LIMIT


def test_the_gate_rejects_the_same_noise_in_layers_of_one_shape(monkeypatch):
    """[es-at-scale, verl-recipe]: the generator is seeded again for each parameter."""
    monkeypatch.setattr(noise, "name_hash", lambda name: 0)
    assert not gates.mean_gate(node_perturbation(), TRUTH).passed


def of_two_pairs(baseline):
    """Estimates with this baseline, each from two antithetic pairs."""
    tx = bpfree.node_perturbation(
        problems.mlp_loss,
        num_samples=4,
        sigma=SIGMA,
        antithetic=True,
        baseline=baseline,
    )
    return problems.estimates(tx, PARAMS, BATCH, 4 * REPEATS)


def test_a_left_out_pair_is_left_out_whole():
    gate = gates.mean_gate(of_two_pairs("leave_one_out"), TRUTH)
    assert gate.passed and gate.error < 0.02, gate


def test_the_gate_rejects_a_baseline_that_leaves_out_half_a_pair():
    """The partner shares the noise: with K samples the slope is 1 + 1 / (K - 1)."""

    def planted(losses):
        return losses - (losses.sum((0, 1), keepdims=True) - losses) / 3

    credited = {k: g for k, g in TRUTH.items() if k != "scale"}
    estimates = of_two_pairs(planted)
    gate = gates.mean_gate({k: estimates[k] for k in credited}, credited)
    assert gate.z > gates.LIMIT
    assert gate.slope == pytest.approx(4 / 3, abs=5 * gate.error)


def twice_the_batch():
    return jax.tree.map(lambda a: jnp.concatenate([a, a]), BATCH)


def one_draw_for_the_batch(monkeypatch):
    """[nodepert]: every example gets the noise of the first. Unbiased, but useless."""

    def planted(*args):
        drawn = draw_chunk(*args)
        return {k: jnp.broadcast_to(z[:, :1], z.shape) for k, z in drawn.items()}

    monkeypatch.setattr(runs, "draw_chunk", planted)


def test_variance_falls_with_the_batch(right):
    """The batch twice: the same gradient, twice as many independent draws."""
    z = gates.variance_z(right, node_perturbation(twice_the_batch()), ratio=2.0)
    assert abs(z) < gates.LIMIT


def test_variance_falls_with_the_samples(right):
    more = node_perturbation(num_samples=4 * SAMPLES)
    assert abs(gates.variance_z(right, more, ratio=4.0)) < gates.LIMIT


def test_the_variance_gate_rejects_one_draw_for_the_batch(monkeypatch):
    one_draw_for_the_batch(monkeypatch)
    once, twice = node_perturbation(), node_perturbation(twice_the_batch())
    assert gates.mean_gate(once, TRUTH).passed  # the mean alone does not see it
    assert abs(gates.variance_z(once, twice, ratio=2.0)) > gates.LIMIT


def test_the_variance_gate_rejects_the_same_noise_in_every_sample(right, monkeypatch):
    monkeypatch.setattr(
        runs,
        "draw_chunk",
        lambda plan, key, indices, nodes: draw_chunk(plan, key, 0 * indices, nodes),
    )
    more = node_perturbation(num_samples=4 * SAMPLES)
    assert abs(gates.variance_z(right, more, ratio=4.0)) > gates.LIMIT


def test_the_band_is_calibrated_for_correlated_coordinates():
    """Of 200 means of strongly correlated data, about none leaves the band."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 30))
    outside = 0
    for _ in range(200):
        x = 1.0 + rng.normal(size=(64, 2)) @ mixing + 0.1 * rng.normal(size=(64, 30))
        outside += not gates.mean_gate({"x": x}, {"x": np.ones(30)}).passed
    assert outside == 0


def test_slope_in_log_is_the_order():
    assert np.isclose(gates.slope_in_log([0.1, 0.2, 0.4], [3e-2, 12e-2, 48e-2]), 2.0)
