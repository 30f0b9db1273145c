"""Layers on eight devices: every device pulls its own gradient, and nothing runs back."""

import jax
import jax.numpy as jnp
import pytest

import bpfree
from scripts import pipeline
from tests import statistics as gates
from tests.statistics import assert_close

MESH, PARAMS, BATCH = pipeline.problem(8, 2, 6, 3, jnp.float64)
LOSS = pipeline.pipelined()
BACKPROP = pipeline.on_stages(pipeline.backprop(LOSS), MESH)
PULL = pipeline.on_stages(pipeline.pull(LOSS), MESH)


def one_device(params, batch):
    h = batch["x"]
    for w in params["w"]:
        h = jnp.tanh(h @ w)
    return ((h - batch["t"]) ** 2).sum((0, 2)).mean()


def true_signals(params, batch):
    loss_fn = pipeline.summed(LOSS)

    def moved(deltas):
        losses = bpfree.inject(loss_fn)(params, batch, deltas)[0]
        return jax.lax.pmean(losses.mean(), pipeline.AXIS)

    zeros = jax.tree.map(jnp.zeros_like, bpfree.record(loss_fn)(params, batch)[1])
    return jax.grad(moved)(zeros)


def test_pulls_of_the_devices_are_the_gradient():
    signals = pipeline.on_stages(true_signals, MESH)(PARAMS, BATCH)
    truth = jax.grad(one_device)(PARAMS, BATCH)
    assert_close(PULL(PARAMS, BATCH, signals), truth, rtol=1e-9, atol=1e-12)
    assert_close(BACKPROP(PARAMS, BATCH), truth, rtol=1e-9, atol=1e-12)


def estimates(repeats=1024):
    update = pipeline.update(LOSS, num_samples=8, sigma=1e-3)

    def many(params, batch, keys):
        found = jax.vmap(lambda key: update(params, batch, key[None]))(keys[0])
        return jax.tree.map(lambda g: g[None], found)

    keys = jax.random.split(jax.random.key(1), repeats)
    same = jnp.broadcast_to(keys, (8, repeats))
    found = pipeline.on_stages(many, MESH)(PARAMS, BATCH, same)
    return jax.tree.map(lambda g: g.swapaxes(0, 1), found)


def gate():
    # The mean loss of an update is over all parts.
    mean = lambda p: one_device(p, BATCH) / 3  # noqa: E731
    return gates.mean_gate(estimates(), jax.grad(mean)(PARAMS))


def test_estimates_of_the_devices_are_right_on_average():
    found = gate()
    assert found.error < 0.05
    assert found.passed, found


@pytest.mark.slow
def test_the_credit_of_another_part_would_be_seen(monkeypatch):
    def late(centred, node):
        return jnp.roll(rule(centred, node), 1, 1)

    rule = pipeline.own_part
    monkeypatch.setattr(pipeline, "own_part", late)
    assert not gate().passed


@pytest.mark.usefixtures("optimized")
def test_the_pull_exchanges_nothing():
    """In the loops of the compiled programs: one exchange for each pass."""
    signals = jax.eval_shape(
        pipeline.on_stages(pipeline.forward(LOSS), MESH), PARAMS, BATCH
    )
    keys = jax.random.split(jax.random.key(0), 8)
    update = pipeline.on_stages(pipeline.update(LOSS, num_samples=8), MESH)

    def counted(program, *more):
        return pipeline.collectives(program.lower(PARAMS, BATCH, *more).compile())

    assert counted(PULL, signals) == {"collective-permute": 1}
    assert counted(BACKPROP) == {"collective-permute": 2}
    found = counted(update, keys)
    assert found.pop("all-reduce") <= 2  # the losses of the clean and the noisy passes
    assert found == {"collective-permute": 2}
