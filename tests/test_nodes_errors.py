"""Errors of nodes, and of the losses that hold them: each names what is wrong."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import bpfree
from bpfree.program.trace import takes_key, trace
from tests import problems

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()


def record(loss, **options):
    return bpfree.record(loss, **options)(PARAMS, BATCH)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool, jnp.complex64])
def test_a_node_must_be_real_floating_point(dtype):
    with pytest.raises(TypeError, match="'count' has dtype"):
        bpfree.node(jnp.zeros((5, 3), dtype), "count")


@pytest.mark.parametrize("shape, axis", [((5, 3), 2), ((5, 3), -3), ((), 0)])
def test_the_batch_axis_must_exist(shape, axis):
    with pytest.raises(ValueError, match=f"'y' has shape.*no axis {axis}"):
        bpfree.node(jnp.zeros(shape), "y", batch_axis=axis)


def test_a_negative_batch_axis_counts_from_behind():
    def loss(params, batch):
        y = bpfree.node((batch["x"] @ params["w1"]).T, "y", batch_axis=-1)
        return y.sum(0)

    (site,) = trace(loss, PARAMS, BATCH).nodes
    assert site.batch_axis == 1


def test_the_batch_axis_must_be_as_long_as_the_losses():
    def loss(params, batch):
        y = (batch["x"] @ params["w1"]).T
        return bpfree.node(y, "y", batch_axis=0).sum(0)

    with pytest.raises(ValueError, match=r"'y' has shape \(3, 5\).*batch of 5 losses"):
        record(loss)


def test_a_loss_without_nodes():
    with pytest.raises(ValueError, match="no nodes to perturb"):
        record(lambda params, batch: batch["x"].sum(1))


def test_a_filter_that_keeps_no_node_or_names_an_unknown_one():
    with pytest.raises(ValueError, match=r"keeps none of \['h', 'y'\]"):
        record(problems.mlp_loss, nodes=lambda name: False)
    with pytest.raises(ValueError, match=r"unknown nodes \['z'\]"):
        record(problems.mlp_loss, nodes=["h", "z"])


def with_losses(shape_losses):
    def loss(params, batch):
        return shape_losses(bpfree.node(batch["x"] @ params["w1"], "y"))

    return loss


@pytest.mark.parametrize(
    "shape_losses, message",
    [
        (lambda y: y[:, :1], r"shape \(B,\)"),
        (lambda y: y, r"shape \(B,\)"),
        (lambda y: {"loss": y.sum(1)}, r"shape \(B,\)"),
        (lambda y: [y.sum(1), y], r"shape \(B,\)"),
        (lambda y: (y.sum(1), y, y), r"shape \(B,\)"),
        (lambda y: (y > 0).sum(1), "floating point"),
    ],
)
def test_losses_must_be_one_number_per_example(shape_losses, message):
    with pytest.raises(ValueError, match=message):
        record(with_losses(shape_losses))


@pytest.mark.parametrize("what, call", [("delta", "inject"), ("signal", "pullback")])
def test_unknown_names_and_wrong_shapes_of_deltas_and_signals(what, call):
    def run(tree):
        if call == "inject":
            return bpfree.inject(problems.mlp_loss)(PARAMS, BATCH, tree)
        return bpfree.pullback(problems.mlp_loss)(PARAMS, BATCH)[2](tree)

    with pytest.raises(ValueError, match=f"{what} for unknown node 'z'"):
        run({"z": jnp.zeros((5, 3))})
    with pytest.raises(ValueError, match=rf"{what} of node 'h' has shape \(3,\)"):
        run({"h": jnp.zeros(3)})


# ------------------------------------------------------------- where nodes are not read


def marked(y):
    return jnp.tanh(bpfree.node(y, "inner"))


def in_cond(y):
    return lax.cond(y.sum() > 0, marked, lambda y: y, y)


def in_switch(y):
    return lax.switch(jnp.int32(1), [jnp.tanh, marked, jnp.sin], y)


def in_while(y):
    return lax.while_loop(lambda y: y.sum() > 1e3, marked, y)


def in_the_condition_of_while(y):
    return lax.while_loop(lambda y: marked(y).sum() > 1e3, jnp.tanh, y)


def in_custom_vjp(y):
    fn = jax.custom_vjp(marked)
    fn.defvjp(lambda y: (marked(y), y), lambda y, g: (g * y,))
    return fn(y)


def in_custom_jvp(y):
    fn = jax.custom_jvp(marked)
    fn.defjvp(lambda primals, tangents: (marked(*primals), tangents[0]))
    return fn(y)


def in_map_of_cond(y):
    """Deeper down: the loop is read, what is inside it is not."""
    return lax.map(in_cond, y)


@pytest.mark.parametrize(
    "wrapped, primitive",
    [
        (in_cond, "cond"),
        (in_switch, "cond"),
        (in_while, "while"),
        (in_the_condition_of_while, "while"),
        (in_custom_vjp, "custom_vjp"),
        (in_custom_jvp, "custom_jvp"),
        (in_map_of_cond, "cond"),
    ],
)
def test_a_node_where_it_cannot_be_read_is_named(wrapped, primitive):
    loss = with_losses(lambda y: wrapped(y).sum(1))
    with pytest.raises(NotImplementedError, match=f"'inner' is inside `{primitive}"):
        record(loss)


@pytest.mark.parametrize("wrap", [lax.map, jax.jit, jax.checkpoint])
def test_custom_derivatives_and_branches_beside_nodes_are_fine(wrap):
    """relu is a custom_jvp, and cond without nodes is an operation like another."""

    def branch(y):
        return lax.cond(y.sum() > 0, jnp.tanh, lambda y: y, jax.nn.relu(y))

    if wrap is lax.map:
        loss = with_losses(lambda y: lax.map(branch, y).sum(1))
    else:
        loss = with_losses(lambda y: wrap(branch)(y).sum(1))
    pulled, truth = problems.pulled_and_truth(loss, PARAMS, BATCH)
    assert bool(jnp.allclose(pulled["w1"], truth["w1"], rtol=1e-10))
    assert truth["w1"].any()


def test_two_axis_names_for_one_node_cannot_both_be_the_batch():
    """`vmap` over an example's parts keeps the batch axis that was written."""

    def loss(params, batch):
        y = batch["x"] @ params["w1"]
        parts = jax.vmap(lambda column: bpfree.node(column, "y"), 1, 1)(y)
        return parts.sum(1)

    (site,) = trace(loss, PARAMS, BATCH).nodes
    assert site.shape[site.batch_axis] == 5


def test_an_empty_batch():
    with pytest.raises(ValueError, match="the batch is empty"):
        bpfree.record(lambda p, b: bpfree.node(b @ p["w1"]).sum(1))(
            PARAMS, jnp.zeros((0, PARAMS["w1"].shape[0]))
        )


def test_a_third_parameter_with_a_value_of_its_own_is_no_key():
    assert takes_key(lambda params, batch, anything: 0)
    assert takes_key(lambda params, batch, key=None: 0)
    assert not takes_key(lambda params, batch, train=True: 0)
    assert not takes_key(lambda params, batch, *, key: 0)


@pytest.mark.parametrize("make", [bpfree.node_perturbation, bpfree.weight_perturbation])
def test_mutable_arrays_are_refused(make):
    def loss(params, batch):
        kept = jax.new_ref(jnp.zeros_like(batch["t"]))
        kept[...] = jnp.tanh(batch["x"] @ params["w1"])
        return ((kept[...] @ params["w2"] - batch["t"]) ** 2).sum(1)

    tx = make(loss, num_samples=2)
    with pytest.raises(ValueError, match="writes into a mutable array"):
        tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)
