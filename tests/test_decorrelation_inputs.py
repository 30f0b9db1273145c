"""The kernels of a program, and what they multiply, read from its jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from bpfree.decorrelation import find_layers, inputs
from bpfree.decorrelation.layout import Structure

KEY = jax.random.key(0)


def rows_of(loss_fn, params, batch, cap=10**6, structure=Structure()):  # noqa: B008
    layouts = inputs.layers(loss_fn, params, batch, structure)

    @jax.jit
    def record(params, batch):
        return inputs.record(loss_fn, params, batch, KEY, cap, layouts)

    return record(params, batch), layouts


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


CONVS = {
    "plain": {"window_strides": (1, 1), "padding": "SAME"},
    "strided": {"window_strides": (2, 1), "padding": ((1, 1), (0, 2))},
    "dilated": {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)},
    "transposed": {
        "window_strides": (1, 1),
        "padding": ((2, 1), (1, 2)),
        "lhs_dilation": (2, 2),
    },
    "grouped": {
        "window_strides": (2, 2),
        "padding": "SAME",
        "feature_group_count": 2,
    },
}


@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_a_convolution_is_its_windows_times_its_matrix(options):
    """unfold, then the layout's matrices: the convolution itself, non-square images."""
    groups = options.get("feature_group_count", 1)
    params = {"w": normal(3, 2, 4 // groups, 6)}
    batch = {"x": normal(2, 7, 5, 4)}
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(params, batch):
        return lax.conv_general_dilated(
            batch["x"], params["w"], dimension_numbers=numbers, **options
        )

    def loss_fn(params, batch):
        return conv(params, batch).sum((1, 2, 3))

    rows, layouts = rows_of(loss_fn, params, batch)
    matrices = layouts["w"].matrices(params["w"])
    y = np.einsum("gnd,god->ngo", rows["w"], matrices)
    expected = conv(params, batch)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-9, atol=1e-9)
    few, _ = rows_of(loss_fn, params, batch, cap=9)
    assert few["w"].shape[1] == 9
    everything = {tuple(r) for r in np.asarray(rows["w"][0]).round(9)}
    assert {tuple(r) for r in np.asarray(few["w"][0]).round(9)} <= everything


@pytest.mark.parametrize(
    "structure", [(None, False), (6, False), (None, True), (2, True)]
)
def test_layouts_are_permutations_and_match_their_inputs(structure):
    params, batch = {"w": normal(3, 2, 4, 6)}, {"x": normal(2, 7, 5, 4)}
    numbers = ("NHWC", "HWIO", "NHWC")

    def loss_fn(params, batch):
        y = lax.conv_general_dilated(
            batch["x"], params["w"], (1, 1), "SAME", dimension_numbers=numbers
        )
        return y.sum((1, 2, 3))

    rows, layouts = rows_of(loss_fn, params, batch, structure=Structure(*structure))
    layout = layouts["w"]
    matrices = layout.matrices(params["w"])
    assert matrices.shape == layout.sizes
    np.testing.assert_array_equal(layout.kernel(matrices), params["w"])
    g, _, d = layout.sizes
    assert rows["w"].shape[::2] == (g, d)
    expected = {(None, False): (1, 6, 24), (6, False): (4, 6, 6)}
    expected |= {(None, True): (1, 36, 4), (2, True): (2, 36, 2)}
    assert layout.sizes == expected[structure]
    # Blocks of input channels: every entry of a row belongs to a channel of its block.
    channel = jnp.arange(4.0).reshape(1, 1, 4, 1)
    per_channel = channel + jnp.zeros((3, 2, 4, 6))
    channels = np.asarray(layout.matrices(per_channel))
    marked, _ = rows_of(
        loss_fn,
        params,
        {"x": channel.swapaxes(2, 3) + 1 + jnp.zeros((2, 7, 5, 4))},
        structure=Structure(*structure),
    )
    seen = np.asarray(marked["w"]).max(1) - 1
    np.testing.assert_array_equal(seen, channels[:, 0])


def dense_cases():
    x = normal(6, 5)

    def by_example(params, batch):
        return jax.vmap(lambda v: (params["w"].T @ v).sum())(batch)

    @jax.custom_vjp
    def custom(w, x):
        return x @ w

    custom.defvjp(lambda w, x: (x @ w, x), lambda x, g: (x.T @ g, g))
    return {
        "plain": (lambda p, b: (b @ p["w"]).sum(1), normal(5, 3), x),
        "transposed": (lambda p, b: (b @ p["w"].T).sum(1), normal(3, 5), x),
        "vmapped": (by_example, normal(5, 3), x),
        "cast": (
            lambda p, b: (b.astype("float32") @ p["w"].astype("float32")).sum(1),
            normal(5, 3),
            x,
        ),
        "jit and remat": (
            lambda p, b: jax.jit(jax.checkpoint(lambda w: (b @ w).sum(1)))(p["w"]),
            normal(5, 3),
            x,
        ),
        "custom derivative": (lambda p, b: custom(p["w"], b).sum(1), normal(5, 3), x),
        "einsum": (
            lambda p, b: jnp.einsum("bd,hdk->bhk", b, p["w"]).sum((1, 2)),
            normal(2, 5, 3),
            x,
        ),
    }


@pytest.mark.parametrize("case", dense_cases())
def test_inputs_of_a_product_however_it_is_written(case):
    loss_fn, w, x = dense_cases()[case]
    rows, layouts = rows_of(loss_fn, {"w": w}, x)
    assert layouts["w"].sizes == (1, w.size // 5, 5)
    np.testing.assert_allclose(rows["w"][0], x, rtol=1e-6)


def test_stacked_and_repeated_kernels():
    """A kernel scanned over keeps its stack; one used at every step pools the steps."""
    params = {"stack": normal(3, 4, 4), "loop": normal(4, 4)}
    x = normal(5, 4)

    def loss_fn(params, batch):
        def layer(h, w):
            return jnp.tanh(h @ w), h

        def step(h, _):
            return jnp.tanh(h @ params["loop"]), h

        h, seen = lax.scan(layer, batch, params["stack"])
        h, again = lax.scan(step, h, length=2)
        return h.sum(1), (seen, again)

    rows, layouts = rows_of(loss_fn, params, x)
    seen, again = loss_fn(params, x)[1]
    assert layouts["stack"].sizes == (3, 4, 4) and layouts["loop"].sizes == (1, 4, 4)
    np.testing.assert_allclose(rows["stack"], seen)
    np.testing.assert_allclose(rows["loop"][0], again.reshape(10, 4))
    matrices = layouts["stack"].matrices(params["stack"])
    np.testing.assert_array_equal(matrices, params["stack"].swapaxes(1, 2))


def test_attention_projections_and_what_is_left_alone():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.LayerNorm()(nn.Embed(7, 8)(tokens))
            x = nn.MultiHeadDotProductAttention(2)(x, x)
            return nn.DenseGeneral((2, 3), axis=(-2, -1))(x).sum((1, 2))

    tokens = jnp.arange(12).reshape(3, 4) % 7
    params = Model().init(KEY, tokens)["params"]

    def loss_fn(params, batch):
        return Model().apply({"params": params}, batch)

    found = find_layers(loss_fn, params, tokens)
    attention = "MultiHeadDotProductAttention_0"
    assert found == {
        "DenseGeneral_0/kernel": (1, 6, 32),
        f"{attention}/key/kernel": (1, 8, 8),
        f"{attention}/out/kernel": (1, 8, 8),
        f"{attention}/query/kernel": (1, 8, 8),
        f"{attention}/value/kernel": (1, 8, 8),
    }


def test_a_kernel_read_in_two_ways_is_left_alone():
    def loss_fn(params, batch):
        return (batch @ params["w"] @ params["w"].T @ params["v"]).sum(1)

    params = {"w": normal(4, 4), "v": normal(4, 2)}
    assert list(find_layers(loss_fn, params, normal(3, 4))) == ["v"]
