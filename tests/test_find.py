"""Nodes found in loss functions that import nothing of bpfree."""

import jax
import jax.numpy as jnp
import optax
import pytest

import bpfree
from tests import problems
from tests.statistics import assert_close

KEYS = jax.random.split(jax.random.key(0), 8)


def normal(i, *shape):
    return jax.random.normal(KEYS[i], shape, jnp.float64)


def cross_entropy(logits, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -picked[:, 0]


def vmapped(params, batch):
    """A function of one example, with as many steps as examples."""

    def one(x, label):
        h = jnp.cumsum(jnp.tanh(x @ params["w1"] + params["b1"][None]), 0)
        return cross_entropy(h @ params["w2"] + params["b2"][None], label).mean()

    return jax.vmap(one)(batch["x"], batch["label"])


def folded(params, batch):
    """Examples and steps in one axis."""
    b, t, d = batch["x"].shape
    h = jnp.tanh(batch["x"].reshape(b * t, d) @ params["w1"] + params["b1"][None])
    h = h.reshape(b, t, -1).mean(1)
    logits = h @ params["w2"] + params["b2"][None]
    return cross_entropy(logits, batch["label"][:, 0])


def normalised(params, batch):
    """Statistics of the batch between two layers: the examples meet."""
    h = batch["x"][:, 0] @ params["w1"] + params["b1"][None]
    h = (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)
    logits = jnp.tanh(h) @ params["w2"] + params["b2"][None]
    return cross_entropy(logits, batch["label"][:, 0])


def ranked(params, batch):
    """Each example against the largest of the batch."""
    h = batch["x"][:, 0] @ params["w1"] + params["b1"][None]
    logits = jnp.tanh(h - h.max(0, keepdims=True) / 2) @ params["w2"] + params["b2"][None]
    return cross_entropy(logits, batch["label"][:, 0])


def scaled(params, batch):
    """A learned scale in front of a product."""
    h = jnp.tanh(batch["x"].mean(1) @ params["w1"]) * params["b1"][None]
    return cross_entropy(h @ params["w2"] + params["b2"][None], batch["label"][:, 0])


LOSSES = [vmapped, folded, normalised, scaled]
PARAMS = {
    "w1": normal(0, 3, 6) / 2,
    "b1": normal(1, 6) / 4,
    "w2": normal(2, 6, 5) / 2,
    "b2": normal(3, 5) / 4,
}
BATCH = {
    "x": normal(4, 4, 4, 3),
    "label": jax.random.randint(KEYS[5], (4, 4), 0, 5),
}


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_nothing_is_carried_and_the_pull_of_the_true_gradient_is_exact(loss_fn):
    found = bpfree.blocks(loss_fn, PARAMS, BATCH)
    assert sum(block.carried for block in found) == 0
    assert {path for block in found for path in block.params} >= {"w1", "w2", "b2"}

    @jax.jit
    def both(params):
        _, values, pull = bpfree.pullback(loss_fn)(params, BATCH)

        def mean(deltas):
            return bpfree.inject(loss_fn)(params, BATCH, deltas)[0].mean()

        signals = jax.grad(mean)(jax.tree.map(jnp.zeros_like, values))
        return pull(signals), jax.grad(lambda p: loss_fn(p, BATCH).mean())(params)

    pulled, truth = both(PARAMS)
    for name, value in truth.items():
        assert jnp.abs(pulled[name] - value).max() < 1e-9 * (1 + jnp.abs(value).max())


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_node_perturbation_estimates_the_gradient(loss_fn):
    """200 estimates of 64 samples: their mean is within five standard errors of 1."""
    tx = bpfree.node_perturbation(loss_fn, num_samples=64, sigma=1e-4, chunk_size=64)
    truth = problems.gradient(loss_fn, PARAMS, BATCH)

    @jax.jit
    def estimates(state):
        def step(state, _):
            zeros = jax.tree.map(jnp.zeros_like, PARAMS)
            gradient, state = tx.update(zeros, state, PARAMS, batch=BATCH)
            products = jax.tree.map(jnp.vdot, gradient, truth)
            return state, products

        return jax.lax.scan(step, state, None, length=200)[1]

    found = estimates(tx.init(PARAMS))
    for name, products in found.items():
        square = jnp.vdot(truth[name], truth[name])
        if square > 1e-12:
            slopes = products / square
            error = slopes.std() / jnp.sqrt(200.0)
            assert abs(slopes.mean() - 1) < 5 * error


def test_names_are_those_of_the_parameters():
    names = [block.name for block in bpfree.blocks(folded, PARAMS, BATCH)]
    assert names == ["w1", "w2", "(loss)"]


def test_the_folded_axis_of_a_node_is_unfolded():
    _, values, inputs = bpfree.record(folded)(PARAMS, BATCH)
    assert values["w1"].shape == (4, 4, 6)
    assert set(inputs) == {"w1", "w2"}


def test_where_examples_meet_a_node_is_shared_or_the_parameter_is_one():
    names = [block.name for block in bpfree.blocks(ranked, PARAMS, BATCH)]
    assert names == ["b1", "w1", "w2", "(loss)"]
    _, values, _ = bpfree.record(ranked)(PARAMS, BATCH)
    assert values["w1"].shape == (3, 6)  # fewer entries than 4 examples of 6
    test_node_perturbation_estimates_the_gradient(ranked)


X3 = BATCH["x"][:, 0]


def normed(h, params):
    moments = h - h.mean(1, keepdims=True)
    power = (moments**2).mean(1, keepdims=True)
    return moments / jnp.sqrt(power + 1e-5) * params["b1"][None] + params["b1"][None]


def shifted(h, params):
    return h + params["b1"][None]


PLACES = {
    "bias": (lambda p, h, x: shifted(h, p), lambda p, h: shifted(h, p)),
    "norm": (lambda p, h, x: jnp.tanh(normed(h, p)), lambda p, h: normed(h, p)),
    "power": (lambda p, h, x: shifted(h**2, p), lambda p, h: h),
    "residual": (lambda p, h, x: shifted(h + jnp.tanh(h), p), lambda p, h: h),
    "data": (lambda p, h, x: shifted(h + x.mean(), p), lambda p, h: h),
    "scale": (lambda p, h, x: jnp.sin(h * p["b1"][None]), lambda p, h: h * p["b1"][None]),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_node_stands_after_what_is_computed_of_its_product_alone(name):
    whole, until = PLACES[name]

    def loss_fn(params, batch):
        return whole(params, batch["x"] @ params["w1"], batch["x"]).sum(1)

    _, values, _ = bpfree.record(loss_fn)(PARAMS, {"x": X3})
    assert_close(values["w1"], until(PARAMS, X3 @ PARAMS["w1"]), rtol=1e-12)


def test_one_node_stands_at_the_sum_of_products():
    """Of an input and a state; where one of them is used elsewhere, two."""
    params = PARAMS | {"u": normal(7, 3, 6)}

    def cell(params, batch, twice=0.0):
        z, h = batch["x"] @ params["w1"], jnp.cos(batch["x"]) @ params["u"]
        loss = jnp.tanh(z + h + params["b1"][None]).sum(1)
        return loss + jnp.tanh(h).sum(1) if twice else loss

    batch = {"x": X3}
    found = {
        block.name: set(block.params) for block in bpfree.blocks(cell, params, batch)
    }
    assert found == {"w1": {"w1", "u", "b1"}, "(loss)": set()}
    apart = bpfree.record(lambda p, b: cell(p, b, 1.0))(params, batch)[1]
    assert set(apart) == {"w1", "u"}


def test_a_wrong_batch_axis_would_be_seen():
    """The planted fault: the axis of the steps in place of that of the examples."""

    def marked(params, batch):
        h = jnp.tanh(
            bpfree.node(batch["x"] @ params["w1"] + params["b1"][None, None], "h", 1)
        )
        h = jnp.cumsum(h, 1)
        logits = bpfree.node(h @ params["w2"] + params["b2"][None, None], "y")
        picked = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch["label"][..., None], 2
        )
        return -picked[..., 0].mean(1)

    with pytest.raises(AssertionError):
        test_node_perturbation_estimates_the_gradient(marked)


def test_a_parameter_that_chooses_a_branch_is_perturbed_itself():
    def branched(params, batch):
        y = jax.lax.cond(params["t"] > 0, jnp.sin, jnp.cos, batch["x"] @ params["w"])
        return y.sum(1)

    params = {"t": jnp.float64(0.5), "w": normal(0, 3, 2)}
    found = bpfree.blocks(branched, params, {"x": normal(1, 4, 3)})
    assert [block.name for block in found] == ["t", "w", "(loss)"]


def test_a_parameter_that_meets_no_product_is_perturbed_itself():
    def loss_fn(params, batch):
        return ((params["template"][None] - batch["x"]) ** 2).sum(1)

    params, batch = {"template": normal(0, 3)}, {"x": normal(1, 4, 3)}
    found = bpfree.blocks(loss_fn, params, batch)
    assert [block.name for block in found] == ["template", "(loss)"]


def test_a_net_that_only_constants_enter_is_perturbed_at_its_parameters():
    """Coordinates: two layers of parameters, and a last one in the loss's own block."""
    points = normal(0, 6, 2)

    def loss_fn(params, batch):
        h = jnp.sin(jnp.sin(points @ params["w1"]) @ params["w2"])
        return (((h @ params["w3"]).T - batch["image"]) ** 2).sum(1)

    params = {"w1": normal(1, 2, 5), "w2": normal(2, 5, 5), "w3": normal(3, 5, 1)}
    found = bpfree.blocks(loss_fn, params, {"image": normal(4, 4, 6)})
    assert [block.name for block in found] == ["w1", "w2", "(loss)"]
    assert sum(block.carried for block in found) == 0


def test_a_parameter_without_entries_is_none():
    def loss_fn(params, batch):
        h = batch["x"] @ params["w"]
        h = jnp.concatenate([h, h[:, :0] @ params["empty"]], -1)
        return (jnp.tanh(h) @ params["v"]).sum(1)

    shapes = {"w": (3, 2), "empty": (0, 0), "v": (2, 2)}
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    batch = {"x": normal(3, 4, 3)}
    found = bpfree.blocks(loss_fn, params, batch)
    assert [block.name for block in found] == ["w", "v", "(loss)"]
    assert sum(block.carried for block in found) == 0
    plain = bpfree.node_perturbation(loss_fn, num_samples=2)
    adam = optax.adam(0.1)
    with jax.numpy_dtype_promotion("standard"):  # of Adam
        for tx in (
            plain,
            bpfree.learned_feedback(loss_fn, num_samples=2, example_batch=batch),
            optax.chain(plain, bpfree.decorrelate(adam, loss_fn, example_batch=batch)),
        ):
            step = jax.jit(lambda p, tx=tx: tx.update(p, tx.init(p), p, batch=batch))
            update, _ = step(params)
            assert update["empty"].shape == (0, 0)
            assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(update))


def test_no_parameters_is_an_error():
    with pytest.raises(ValueError, match="no nodes to perturb"):
        bpfree.blocks(
            lambda p, b: b["x"].sum(1), {"w": jnp.ones(3)}, {"x": jnp.ones((2, 3))}
        )
