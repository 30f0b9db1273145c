"""`combine`: each parameter from the estimator of its label."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpfree


def loss_fn(params, batch):
    hidden = jnp.tanh(bpfree.node(batch["x"] @ params["w"], "hidden"))
    out = bpfree.node(hidden @ params["u"], "out")
    return jnp.sum((out - batch["y"]) ** 2, -1)


KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "u": jax.random.normal(KEYS[0], (16, 3), jnp.float32),
    "w": jax.random.normal(KEYS[1], (8, 16), jnp.float32),
}
BATCH = {
    "x": jax.random.normal(KEYS[2], (4, 8), jnp.float32),
    "y": jax.random.normal(KEYS[3], (4, 3), jnp.float32),
}
LABELS = {"w": "lr", "u": "bp"}


def parts():
    return {
        "lr": bpfree.likelihood_ratio(loss_fn, num_samples=8, nodes=["hidden"]),
        "bp": bpfree.backprop(loss_fn),
    }


def gradient_of(tx):
    return tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)


@pytest.mark.parametrize("labels", [LABELS, lambda params: LABELS], ids=["tree", "fn"])
def test_each_leaf_is_its_own_estimators(labels):
    combined, state = gradient_of(bpfree.combine(parts(), labels))
    alone = {name: gradient_of(tx)[0] for name, tx in parts().items()}
    np.testing.assert_array_equal(combined["w"], alone["lr"]["w"])
    np.testing.assert_array_equal(combined["u"], alone["bp"]["u"])
    np.testing.assert_allclose(bpfree.value(state), loss_fn(PARAMS, BATCH).mean())


def test_labels_may_be_a_prefix():
    tree = {"front": {"a": 1.0, "b": 2.0}, "back": 3.0}

    def quadratic(params, batch):
        return bpfree.node(batch @ sum(map(jnp.asarray, jax.tree.leaves(params))))

    made = bpfree.combine(
        {"x": bpfree.backprop(quadratic), "y": bpfree.backprop(quadratic)},
        {"front": "x", "back": "y"},
    )
    params = jax.tree.map(lambda v: jnp.full((2,), v, jnp.float32), tree)
    batch = jnp.ones((3, 2), jnp.float32)
    gradient, _ = made.update(None, made.init(params), params, batch=batch)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 1.0), gradient)


def test_the_clean_pass_is_shared_and_nothing_unasked_is_computed():
    """FLOPs of the combination = those of the part that covers all nodes, alone."""

    def cost(tx):
        state = tx.init(PARAMS)
        step = jax.jit(lambda p, s: tx.update(None, s, p, batch=BATCH)[0])
        return step.lower(PARAMS, state).compile().cost_analysis()["flops"]

    combined = cost(bpfree.combine(parts(), LABELS))
    assert combined < 1.05 * cost(parts()["lr"])


def test_parts_answer_for_their_own_leaves_only():
    """Behind a threshold the part for `u` has no derivative for `w`, and needs none."""

    def threshold(params, batch):
        hidden = jnp.sign(bpfree.node(batch["x"] @ params["w"], "hidden"))
        out = bpfree.node(hidden @ params["u"], "out")
        return jnp.sum((out - batch["y"]) ** 2, -1)

    make = functools.partial(bpfree.node_perturbation, threshold, num_samples=4)
    combined = bpfree.combine(
        {"a": make(nodes=["hidden"]), "b": make(nodes=["out"])}, {"w": "a", "u": "b"}
    )
    gradient, _ = gradient_of(combined)
    assert gradient["u"].any()
    with pytest.raises(ValueError, match="parameter 'w' moves the loss"):
        gradient_of(make(nodes=["out"]))


def test_trains_in_a_chain():
    estimators = {
        "first": bpfree.node_perturbation(loss_fn, num_samples=8, nodes=["hidden"]),
        "last": bpfree.node_perturbation(loss_fn, num_samples=8, nodes=["out"]),
    }
    tx = optax.chain(
        bpfree.combine(estimators, {"w": "first", "u": "last"}), optax.sgd(2e-2)
    )

    def step(carry, _):
        params, state = carry
        zeros = optax.tree.zeros_like(params)
        updates, state = tx.update(zeros, state, params, batch=BATCH)
        return (optax.apply_updates(params, updates), state), bpfree.value(state)

    start = (PARAMS, tx.init(PARAMS))
    _, losses = jax.jit(lambda c: jax.lax.scan(step, c, length=200))(start)
    assert losses[-1] < 0.1 * losses[0]


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="at least one"):
        bpfree.combine({}, {})
    with pytest.raises(ValueError, match=r"labels \['bp', 'typo'\] must be .* 'lr'"):
        bpfree.combine(parts(), {"w": "typo", "u": "bp"}).init(PARAMS)
    with pytest.raises(TypeError, match="combine takes estimators, and 'lr' is a"):
        bpfree.combine({"lr": optax.sgd(0.1)}, LABELS)
    other = bpfree.backprop(lambda params, batch: loss_fn(params, batch))
    with pytest.raises(ValueError, match="one loss function"):
        bpfree.combine({"a": other, "b": bpfree.backprop(loss_fn)}, LABELS)
