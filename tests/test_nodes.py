"""What record, inject and pullback return on straight code."""

import jax
import jax.numpy as jnp
import pytest

import bpfree
from bpfree.program import passes
from bpfree.program.trace import name_hash, trace
from tests import problems
from tests.statistics import assert_close

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
LOSS = problems.mlp_loss


def test_node_is_the_identity_with_the_identity_as_derivative():
    x = BATCH["x"]
    assert_close(bpfree.node(x), x, rtol=0.0)
    for fn in (jax.jit(bpfree.node), jax.grad(lambda x: bpfree.node(x).sum())):
        assert fn(x).shape == x.shape
    assert bool(jnp.all(jax.grad(lambda x: bpfree.node(x).sum())(x) == 1.0))
    _, tangent = jax.jvp(bpfree.node, (x,), (2 * x,))
    assert_close(tangent, 2 * x, rtol=0.0)


def test_record_returns_the_values_in_front_of_each_node():
    losses, values, inputs = bpfree.record(LOSS)(PARAMS, BATCH)
    h = BATCH["x"] @ PARAMS["w1"] + PARAMS["b1"][None]
    y = jnp.tanh(h) @ PARAMS["w2"] + PARAMS["b2"][None]
    assert_close(values, {"h": h, "y": y}, rtol=1e-12)
    assert_close(losses, LOSS(PARAMS, BATCH), rtol=1e-12)
    assert_close(inputs, {"w1": BATCH["x"], "w2": jnp.tanh(h)}, rtol=1e-12)


def test_record_returns_kernel_inputs_by_path():
    def loss(params, batch):
        y = bpfree.node(batch["x"] @ params["w1"], "y")
        return (jnp.tanh(y) @ params["w2"]).sum(1)

    _, values, inputs = bpfree.record(loss)(PARAMS, BATCH)
    assert_close(inputs, {"w1": BATCH["x"], "w2": jnp.tanh(values["y"])}, rtol=1e-12)


def test_inject_adds_behind_the_node_and_reports_what_was_in_front():
    delta = {"h": 0.1 * BATCH["t"]}
    losses, values = bpfree.inject(LOSS)(PARAMS, BATCH, delta)
    h = BATCH["x"] @ PARAMS["w1"] + PARAMS["b1"][None]
    y = jnp.tanh(h + delta["h"]) @ PARAMS["w2"] + PARAMS["b2"][None]
    error = jnp.tanh(y) * PARAMS["scale"] - BATCH["t"]
    assert_close(values, {"h": h, "y": y}, rtol=1e-12)
    assert_close(losses, (error**2).sum(1), rtol=1e-12)


def test_pullback_with_true_signals_is_the_gradient():
    pulled, truth = problems.pulled_and_truth(LOSS, PARAMS, BATCH)
    assert_close(pulled, truth, rtol=1e-10, atol=1e-12)


def test_a_one_hot_signal_reaches_its_own_block_only():
    _, values, pull = bpfree.pullback(LOSS)(PARAMS, BATCH)
    behind_last = pull({})
    assert {k for k, g in behind_last.items() if g.any()} == {"scale"}
    for name, block in {"h": {"w1", "b1"}, "y": {"w2", "b2"}}.items():
        one_hot = jnp.zeros_like(values[name]).at[2, 1].set(1.0)
        credit = jax.tree.map(jnp.subtract, pull({name: one_hot}), behind_last)
        assert {k for k, g in credit.items() if g.any()} == block
    inputs = jnp.tanh(values["h"])[2]
    assert_close(credit["w2"][:, 1], inputs, rtol=1e-12)
    assert not credit["w2"][:, 0].any()


def held(vjp):
    return [leaf for leaf in jax.tree.leaves(vjp) if isinstance(leaf, jax.Array)]


def holds(vjp, kernel):
    transposes = (kernel, kernel.T)
    return any(
        leaf.shape == k.shape and bool(jnp.all(leaf == k))
        for leaf in held(vjp)
        for k in transposes
    )


def test_the_pullback_keeps_no_kernel():
    """No weight transport: what the pull keeps holds no weights, unlike backprop."""
    traced = trace(LOSS, PARAMS, BATCH)

    def cut(params):
        losses, values = passes.cut(traced, (params, BATCH))
        return losses, values

    _, pull = jax.vjp(cut, PARAMS)
    _, backprop = jax.vjp(lambda p: LOSS(p, BATCH), PARAMS)
    assert held(pull)
    assert holds(backprop, PARAMS["w2"])
    assert not any(holds(pull, PARAMS[k]) for k in ("w1", "w2"))


def test_nodes_chosen_by_name_merge_the_other_blocks():
    """Without node y, the block behind h is differentiated through: exactly."""
    for chosen in ("h", ["h"], {"h"}, lambda name: name != "y"):
        _, values, pull = bpfree.pullback(LOSS, nodes=chosen)(PARAMS, BATCH)
        assert set(values) == {"h"}
        truth = problems.gradient(LOSS, PARAMS, BATCH)
        behind = pull({})
        for k in ("w2", "b2", "scale"):
            assert_close(behind[k], truth[k], rtol=1e-10, atol=1e-12)
        assert not behind["w1"].any()
        assert set(bpfree.inject(LOSS, nodes=chosen)(PARAMS, BATCH, {})[1]) == {"h"}


def named(*names):
    def loss(params, batch):
        x = batch["x"]
        for name in names:
            x = jnp.tanh(bpfree.node(x @ params["w1"], name))
        return x.sum(1)

    return loss


def test_names_repeated_and_missing():
    def names(*given):
        return list(bpfree.record(named(*given))(PARAMS, BATCH)[1])

    assert names("a", "a", "b", "a") == ["a", "a#1", "b", "a#2"]
    assert names(None, "a", None) == ["node_0", "a", "node_1"]
    assert names("node_0", None) == ["node_0", "node_0#1"]


@pytest.mark.parametrize("names", [("a", "a", "a#1"), ("a#1", "a", "a")])
def test_a_written_name_that_meets_a_number_is_an_error(names):
    with pytest.raises(ValueError, match="a#1"):
        bpfree.record(named(*names))(PARAMS, BATCH)


def test_names_with_one_crc32_are_an_error():
    assert name_hash("plumless") == name_hash("buckeroo")
    with pytest.raises(ValueError, match="'buckeroo' and 'plumless'"):
        bpfree.record(named("plumless", "buckeroo"))(PARAMS, BATCH)
    kept = bpfree.record(named("plumless", "buckeroo"), nodes="plumless")
    assert set(kept(PARAMS, BATCH)[1]) == {"plumless"}


def noisy_loss(params, batch, key):
    mask = jax.random.bernoulli(key, 0.5, batch["x"].shape).astype(batch["x"].dtype)
    y = bpfree.node((mask * batch["x"]) @ params["w1"], "y")
    return (y**2).sum(1)


def test_a_loss_with_a_key():
    key = jax.random.key(7)
    losses, values, _ = bpfree.record(noisy_loss)(PARAMS, BATCH, key)
    assert_close(losses, noisy_loss(PARAMS, BATCH, key), rtol=1e-12)
    again = bpfree.inject(noisy_loss)(PARAMS, BATCH, {}, key)[1]
    assert_close(values, again, rtol=0.0)
    pulled, truth = problems.pulled_and_truth(noisy_loss, PARAMS, BATCH, key)
    assert_close(pulled, truth, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="PRNG key"):
        bpfree.record(noisy_loss)(PARAMS, BATCH)


def test_a_loss_with_aux():
    def loss(params, batch):
        return LOSS(params, batch), {"mean": batch["x"].mean(), "list": [batch["t"]]}

    for out in (
        bpfree.record(loss)(PARAMS, BATCH)[0],
        bpfree.inject(loss)(PARAMS, BATCH, {})[0],
        bpfree.pullback(loss)(PARAMS, BATCH)[0],
    ):
        assert_close(out, loss(PARAMS, BATCH), rtol=1e-12)
    pulled, truth = problems.pulled_and_truth(loss, PARAMS, BATCH)
    assert_close(pulled, truth, rtol=1e-10, atol=1e-12)


def test_one_loss_for_the_whole_batch():
    loss = lambda params, batch: LOSS(params, batch).mean() ** 2  # noqa: E731
    pulled, truth = problems.pulled_and_truth(loss, PARAMS, BATCH)
    assert_close(pulled, truth, rtol=1e-10, atol=1e-12)


def test_a_threshold_behind_a_node_needs_no_derivative():
    def loss(params, batch):
        h = jnp.sign(bpfree.node(batch["x"] @ params["w1"], "h"))
        y = jnp.round(bpfree.node(h @ params["w2"], "y"))
        return jnp.abs(y - batch["t"]).sum(1)

    _, values, pull = bpfree.pullback(loss)(PARAMS, BATCH)
    signals = {"h": BATCH["t"], "y": BATCH["x"]}
    credit = pull(signals)
    assert_close(credit["w1"], BATCH["x"].T @ signals["h"], rtol=1e-12)
    assert_close(credit["w2"], jnp.sign(values["h"]).T @ signals["y"], rtol=1e-12)


def test_low_precision_nodes_keep_their_dtype():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    batch = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BATCH)
    delta = {"h": jnp.ones((5, 3), jnp.float32)}
    losses, values = bpfree.inject(LOSS)(params, batch, delta)
    assert {v.dtype for v in values.values()} | {losses.dtype} == {
        jnp.dtype(jnp.bfloat16)
    }
    gradient = bpfree.pullback(LOSS)(params, batch)[2](delta)
    assert {g.dtype for g in gradient.values()} == {jnp.dtype(jnp.bfloat16)}
