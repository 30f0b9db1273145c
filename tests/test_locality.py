"""`bpfree.blocks`: what is differentiated between the nodes, and what is refused."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from jax import lax

import bpfree

BATCH = {"x": jnp.ones((3, 2), jnp.float32)}
PARAMS = {"u": jnp.ones((4, 2), jnp.float32), "w": jnp.ones((2, 4), jnp.float32)}
node = bpfree.node


def squares(y):
    return jnp.sum(y**2, -1)


def as_dict(found):
    return {b.name: (b.params, b.products, b.carried) for b in found}


def test_one_node_per_layer_carries_nothing_through_a_weight():
    def loss_fn(params, batch):
        hidden = jnp.tanh(node(batch["x"] @ params["w"], "hidden"))
        return squares(node(hidden @ params["u"], "out"))

    found = bpfree.blocks(loss_fn, PARAMS, BATCH)
    assert as_dict(found) == {
        "hidden": (("w",), 1, 0),
        "out": (("u",), 1, 0),
        "(loss)": ((), 0, 0),
    }
    assert str(found).endswith("error signals carried through a weight: 0")


def test_blocks_say_what_their_noise_is_drawn_for():
    def loss_fn(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["w"])
        centred = hidden - jnp.sort(hidden, axis=0)  # examples meet
        kernel = lax.while_loop(  # no node can stand inside
            lambda c: c[0] < 1, lambda c: (c[0] + 1, c[1] @ params["v"]), (0, centred)
        )[1]
        return squares(kernel @ params["u"])

    params = {
        **PARAMS,
        "v": jnp.eye(4, dtype=jnp.float32),
        "w": jnp.ones((8, 4), jnp.float32),
    }
    batch = {"x": jnp.arange(16, dtype=jnp.float32).reshape(2, 8)}
    found = bpfree.blocks(loss_fn, params, batch)
    assert {b.name: b.noise for b in found} == {
        "v": "weights", "w": "batch", "u": "example", "(loss)": "none"
    }  # fmt: skip


def test_a_block_of_two_layers_carries_its_signal_through_the_second():
    def loss_fn(params, batch):
        return squares(node(jnp.tanh(batch["x"] @ params["w"]) @ params["u"], "out"))

    assert as_dict(bpfree.blocks(loss_fn, PARAMS, BATCH))["out"] == (("u", "w"), 3, 1)


def test_marks_that_leave_backpropagation_are_warned_of():
    def loss_fn(params, batch):
        return squares(node(jnp.tanh(batch["x"] @ params["w"]) @ params["u"], "out"))

    def update(**options):
        tx = bpfree.node_perturbation(loss_fn, num_samples=2, **options)
        return jax.eval_shape(
            lambda: tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)
        )

    with pytest.warns(
        bpfree.BackpropagationWarning, match="'out' with parameters u, w: 1"
    ):
        update()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(nodes="o*")  # on purpose


def test_nodes_filter_enlarges_blocks():
    def loss_fn(params, batch):
        hidden = jnp.tanh(node(batch["x"] @ params["w"], "hidden"))
        return squares(node(hidden @ params["u"], "out"))

    found = as_dict(bpfree.blocks(loss_fn, PARAMS, BATCH, nodes=["hidden"]))
    assert found == {"hidden": (("w",), 1, 0), "(loss)": (("u",), 1, 0)}


def test_the_parameters_of_a_norm_have_weight_noise():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(nn.relu(nn.Conv(4, (3, 3))(x)))
            return nn.Dense(3)(x.reshape(x.shape[0], -1))

    x = jnp.ones((2, 4, 4, 1), jnp.float32)
    params = Net().init(jax.random.key(0), x)["params"]
    loss_fn = bpfree.supervised(Net(), optax.softmax_cross_entropy_with_integer_labels)
    batch = {"x": x, "label": jnp.zeros(2, jnp.int32)}
    found = as_dict(bpfree.blocks(loss_fn, params, batch))
    assert found["Conv_0"] == (("Conv_0/bias", "Conv_0/kernel"), 1, 0)
    assert found["Dense_0"] == (("Dense_0/bias", "Dense_0/kernel"), 1, 0)
    for name in ("LayerNorm_0/bias", "LayerNorm_0/scale"):
        assert found[name] == ((name,), 0, 0)


def test_recurrence_is_local_with_a_node_and_is_not_without():
    def loss_fn(params, batch, mark):
        def step(h, x):
            h = jnp.tanh(mark(x @ params["w"] + h @ params["v"]))
            return h, None

        xs = jnp.stack([batch["x"]] * 3)
        h, _ = jax.lax.scan(step, jnp.zeros((3, 4), jnp.float32), xs)
        return squares(node(h @ params["u"], "out"))

    params = PARAMS | {"v": jnp.eye(4, dtype=jnp.float32)}
    marked = bpfree.blocks(lambda p, b: loss_fn(p, b, node), params, BATCH)
    bare = bpfree.blocks(lambda p, b: loss_fn(p, b, lambda y: y), params, BATCH)
    assert as_dict(marked)["node_0"] == (("v", "w"), 2, 0)
    assert sum(b.carried for b in marked) == 0
    assert sum(b.carried for b in bare) == 2  # through v in time, through u at the end


@jax.custom_vjp
def own_product(h, w):
    return h @ w


own_product.defvjp(
    lambda h, w: (h @ w, (h, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g)
)

SECOND_LAYERS = {
    "masked weight": lambda h, u, batch: h @ (u * batch["x"][0, 0]),
    "cond": lambda h, u, batch: jax.lax.cond(
        batch["x"][0, 0] > 0, lambda: h @ u, lambda: 2.0 * h @ u
    ),
    "custom derivative": lambda h, u, batch: own_product(h, u),
    "while": lambda h, u, batch: jax.lax.fori_loop(0, 2, lambda i, y: y + h @ u, h @ u),
}


@pytest.mark.parametrize("layer", SECOND_LAYERS.values(), ids=list(SECOND_LAYERS))
def test_backprop_in_disguise_is_seen(layer):
    """Two layers and no node between them: the second carries the first one's signal."""

    def loss_fn(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["w"])
        return squares(node(layer(hidden, params["u"], batch), "out"))

    assert as_dict(bpfree.blocks(loss_fn, PARAMS, BATCH))["out"][2] >= 1


def test_shapes_are_enough():
    def loss_fn(params, batch):
        return squares(node(batch["x"] @ params["w"], "hidden"))

    shapes = jax.eval_shape(lambda: (PARAMS, BATCH))
    assert as_dict(bpfree.blocks(loss_fn, *shapes))["hidden"] == (("w",), 1, 0)


# -------------------------------------------------------------------- what is refused


def estimate(loss_fn, params):
    tx = bpfree.node_perturbation(loss_fn, num_samples=2)
    return tx.update(None, tx.init(params), params, batch=BATCH)


ENTRIES = [
    lambda loss_fn, params: bpfree.blocks(loss_fn, params, BATCH),
    lambda loss_fn, params: bpfree.pullback(loss_fn)(params, BATCH),
    estimate,
]


@pytest.mark.parametrize("entry", ENTRIES, ids=["blocks", "pullback", "estimator"])
def test_a_node_behind_a_threshold_is_named(entry):
    def loss_fn(params, batch):
        hidden = jnp.sign(node(batch["x"] @ params["w"], "hidden"))
        return squares(node(jnp.sign(hidden @ params["u"]), "behind"))

    with pytest.raises(ValueError, match="node 'behind' ends a block in which no param"):
        entry(loss_fn, PARAMS)


@pytest.mark.parametrize("entry", ENTRIES, ids=["blocks", "pullback", "estimator"])
def test_a_parameter_that_no_block_reaches_is_named(entry):
    def loss_fn(params, batch):
        hidden = jnp.sign(batch["x"] @ params["w"])
        return squares(node(hidden @ params["u"], "out"))

    with pytest.raises(ValueError, match="parameter 'w' moves the loss but no block"):
        entry(loss_fn, PARAMS)


def test_a_parameter_behind_stop_gradient_is_frozen_and_gets_zero():
    def loss_fn(params, batch):
        hidden = jnp.tanh(batch["x"] @ jax.lax.stop_gradient(params["w"]))
        return squares(node(hidden @ params["u"], "out"))

    gradient, _ = estimate(loss_fn, PARAMS)
    assert not gradient["w"].any() and gradient["u"].any()


def test_a_node_without_the_batch_is_refused_whatever_its_size():
    """Three positions, three examples: only the data flow tells them apart."""

    def loss_fn(params, batch, batch_axis):
        places = node(params["p"] * 2.0, "places", batch_axis)
        y = node(batch["x"] @ params["w"], "y")
        return squares(y + places.sum(0, keepdims=True))

    params = {"p": jnp.ones((3, 4), jnp.float32), "w": PARAMS["w"]}
    with pytest.raises(ValueError, match="node 'places' does not depend on the batch"):
        estimate(lambda p, b: loss_fn(p, b, 0), params)
    estimate(lambda p, b: loss_fn(p, b, None), params)


def test_integer_parameters_are_refused():
    def loss_fn(params, batch):
        return squares(node(batch["x"] @ params["w"]))

    params = {"w": PARAMS["w"], "steps": jnp.int32(0)}
    with pytest.raises(ValueError, match="parameter 'steps' is int32"):
        estimate(loss_fn, params)


def test_a_threshold_trains_with_its_node_in_front():
    def loss_fn(params, batch):
        hidden = jnp.sign(node(batch["x"] @ params["w"], "hidden"))
        return squares(node(hidden @ params["u"], "out"))

    gradient, _ = estimate(loss_fn, PARAMS)
    assert jax.tree.all(jax.tree.map(lambda g: jnp.isfinite(g).all(), gradient))
