"""Forward gradients: right on average, and the limits of what they are the limits of."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from tests import problems
from tests.statistics import assert_close, mean_gate

WIDTH = 4
PARAMS, BATCH = problems.mlp_params(width=WIDTH), problems.mlp_batch(width=WIDTH)
TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)


def estimates(loss_fn=problems.mlp_loss, repeats=1024, params=PARAMS, **options):
    tx = bpfree.forward_gradient(loss_fn, **{"num_samples": 32} | options)
    return problems.estimates(tx, params, BATCH, repeats)


@pytest.mark.parametrize(
    "options",
    [
        {"tangents": "nodes", "noise": "gaussian"},
        {"tangents": "weights"},
        {"tangents": "weights", "noise": "gaussian", "num_samples": 8},
        {"tangents": "weights", "rank": 1},
    ],
    ids=str,
)
def test_the_expectation_is_the_gradient(options):
    gate = mean_gate(estimates(**options), TRUTH)
    assert gate.passed and gate.error < 0.03, gate


def test_one_seed_for_all_parameters_would_be_seen(monkeypatch):
    monkeypatch.setattr("bpfree.sampling.noise.name_hash", lambda name: 0)
    assert not mean_gate(estimates(tangents="weights"), TRUTH).passed


@pytest.mark.parametrize("rank", [None, 1])
def test_antithetic_differences_of_a_quadratic_are_derivatives(rank):
    """So both estimators are one, at any sigma, with the same noise."""
    loss, params = problems.linear_loss, {"w1": PARAMS["w1"]}
    options = {"rank": rank, "num_samples": 16}
    pairs = bpfree.weight_perturbation(
        loss, antithetic=True, sigma=0.5, **options | {"num_samples": 32}
    )
    found = estimates(loss, params=params, tangents="weights", repeats=2, **options)
    assert_close(found, problems.estimates(pairs, params, BATCH, 2), 1e-4, 1e-5)


def test_node_tangents_are_node_perturbation_without_sigma():
    options = {"num_samples": 8, "derivative": "jvp"}
    tx = bpfree.node_perturbation(problems.mlp_loss, **options)
    found = estimates(num_samples=8, repeats=2)
    assert_close(found, problems.estimates(tx, PARAMS, BATCH, 2), rtol=1e-6)


@pytest.mark.parametrize("tangents", ["nodes", "weights"])
def test_eight_devices_and_another_chunk_give_the_same(tangents):
    mesh = jax.make_mesh((8,), ("sample",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("sample"))
    options = {"tangents": tangents, "num_samples": 40}
    one = estimates(repeats=1, **options)
    tx = bpfree.forward_gradient(
        problems.mlp_loss, sharding=sharding, chunk_size=2, **options
    )
    key = jax.random.split(jax.random.key(0), 1)[0]
    run = jax.jit(lambda p: tx.estimator.estimate(key, p, BATCH, tx.init(p)).gradient)
    eight = run(PARAMS)
    assert len(eight["w1"].sharding.device_set) == 8
    assert_close(eight, jax.tree.map(lambda g: g[0], one), rtol=1e-5, atol=1e-6)


def threshold_loss(params, batch):
    h = jnp.sign(bpfree.node(batch["x"] @ params["w1"], "h"))
    return ((bpfree.node(h @ params["w2"], "y") - batch["t"]) ** 2).sum(1)


@pytest.mark.parametrize(
    "tangents, message",
    [
        ("weights", "parameter 'w1' moves the loss, but no derivative"),
        ("nodes", "no derivative reaches the losses from node 'h'"),
    ],
)
def test_a_threshold_is_an_error_and_not_a_zero(tangents, message):
    tx = bpfree.forward_gradient(threshold_loss, tangents=tangents)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: tx.update(None, tx.init(p), p, batch=BATCH), PARAMS)


def test_frozen_parameters_get_no_direction():
    def loss(params, batch):
        frozen = jax.lax.stop_gradient(params["w2"])
        return ((batch["x"] @ params["w1"] @ frozen - batch["t"]) ** 2).sum(1)

    found = estimates(loss, repeats=1, tangents="weights")
    assert found["w1"].any() and not found["w2"].any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tangents": "losses"}, "tangents='losses' is unknown.*nodes.*weights"),
        ({"noise": "laplace"}, "noise='laplace' is unknown"),
        ({"rank": 1}, "rank= is for tangents='weights'"),
        ({"tangents": "weights", "nodes": "h"}, "nodes= and credit= are for"),
        ({"tangents": "weights", "rank": -1}, "rank=-1 must be"),
        ({"num_samples": 0}, "num_samples=0 must be"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        bpfree.forward_gradient(problems.mlp_loss, **options)


def flops(chunk_size):
    """XLA counts the body of the loop over directions once."""
    params = {
        "w": jnp.zeros((256, 64), jnp.float32),
        "v": jnp.zeros((64, 64), jnp.float32),
    }
    x = jnp.zeros((32, 256), jnp.float32)
    tx = bpfree.forward_gradient(
        lambda p, x: (jnp.tanh(x @ p["w"]) @ p["v"]).sum(1) ** 2,
        tangents="weights",
        rank=1,
        chunk_size=chunk_size,
    )
    update = lambda p, x: tx.update(None, tx.init(p), p, batch=x)[0]  # noqa: E731
    return jax.jit(update).lower(params, x).compile().cost_analysis()["flops"]


@pytest.mark.usefixtures("optimized")
def test_directions_of_low_rank_skip_the_first_product():
    first, second = 2 * 32 * 256 * 64, 2 * 32 * 64 * 64
    assert second < flops(2) - flops(1) < first
