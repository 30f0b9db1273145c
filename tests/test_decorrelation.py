"""`decorrelate` around optimisers: the literal layer form, resuming, edits, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree import decorrelation
from tests import problems
from tests.statistics import assert_close

NUMBERS = ("NHWC", "HWIO", "NHWC")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


def net(params, x):
    """A strided convolution, a grouped one, a dense layer with a bias."""
    h = jnp.tanh(_conv(x, params["c1"], (2, 1), 1))
    h = jnp.tanh(_conv(h, params["c2"], (1, 1), 2))
    return h.reshape(len(h), -1) @ params["w"] + params["b"][None]


def _conv(x, kernel, strides, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        ((1, 1), (0, 1)),
        dimension_numbers=NUMBERS,
        feature_group_count=groups,
    )


def conv_loss(params, batch):
    return ((net(params, batch["x"]) - batch["t"]) ** 2).sum(1)


CONV_PARAMS = {
    "c1": normal(3, 2, 2, 4) / 3,
    "c2": normal(3, 2, 2, 4) / 3,
    "w": normal(48, 3) / 4,
    "b": jnp.zeros(3),
}
CONV_BATCH = {"x": normal(6, 6, 4, 2) + 1, "t": normal(6, 3)}


def loss_fn(params, batch):
    h = jnp.tanh(batch["x"] @ params["v"])
    return ((h @ params["w"] + params["b"][None] - batch["t"]) ** 2).sum(1)


PARAMS = {"v": normal(8, 6) / 3, "w": normal(6, 3), "b": jnp.zeros(3)}
BATCH = {"x": normal(8, 8) + 1, "t": normal(8, 3)}


def wrapped(inner=None, loss=loss_fn, **options):
    options = {"example_batch": BATCH, "every": 1, "cap": 10**6, "block": None} | options
    inner = problems.adam(0.01) if inner is None else inner
    return optax.chain(bpfree.backprop(loss), bpfree.decorrelate(inner, loss, **options))


FOOF = pytest.param("foof", marks=pytest.mark.slow)


@functools.cache
def compiled(tx):
    @jax.jit
    def step(params, state, batch):
        updates, state = tx.update(
            optax.tree.zeros_like(params), state, params, batch=batch
        )
        return optax.apply_updates(params, updates), state, updates

    return step


def trained(tx, steps, params=PARAMS, batch=BATCH, state=None):
    state = jax.jit(tx.init)(params) if state is None else state
    for _ in range(steps):
        params, state, _ = compiled(tx)(params, state, batch)
    return params, state


# ---------------------------------------------------------------- the literal layer form

GROUPS = {"c1": 1, "c2": 2, "w": 1}


def literal_net(weights, matrices, batch):
    """(losses, inputs): y = W (R z) in every layer, with windows unfolded by JAX."""
    inputs = {}

    def product(name, z):  # z (n, G, d), W (G, O, d)
        inputs[name] = z
        x = jnp.einsum("ngd,ged->nge", z, matrices[name])
        return jnp.einsum("nge,goe->ngo", x, weights[name])

    def conv(name, h, strides):
        z = lax.conv_general_dilated_patches(
            h, (3, 2), strides, ((1, 1), (0, 1)), dimension_numbers=NUMBERS
        )
        groups = GROUPS[name]
        y = product(name, z.reshape(-1, groups, z.shape[-1] // groups))
        return y.reshape(*z.shape[:3], -1)

    h = jnp.tanh(conv("c1", batch["x"], (2, 1)))
    h = jnp.tanh(conv("c2", h, (1, 1)))
    y = product("w", h.reshape(len(h), 1, -1))[:, 0] + weights["b"][None]
    return ((y - batch["t"]) ** 2).sum(1), inputs


def as_matrix(name, kernel):
    """(G, O, d) by hand, d in the order of JAX's patches: channel, then position."""
    if kernel.ndim == 2:
        return kernel.T[None]
    moved = jnp.moveaxis(kernel, (3, 2), (0, 1))
    return moved.reshape(GROUPS[name], kernel.shape[3] // GROUPS[name], -1)


RATE = 0.02


def numpy_move(matrix, z, kappa):
    """One move of the rule, in NumPy, at the rate RATE, for one group."""
    x = z @ matrix.T
    s = x.T @ x / len(x)
    v = np.diag(s)
    bracket = (1 - kappa) * (s - np.diag(v)) + kappa * np.diag(v - 1)
    return matrix - RATE * bracket @ matrix


def test_ten_steps_equal_the_layer_form(kappa=0.1):
    """Dense and convolutional: W and R of the literal net, moved by NumPy."""
    rule = decorrelation.dbp(kappa, rate=RATE)
    tx = wrapped(loss=conv_loss, rule=rule, example_batch=CONV_BATCH)
    params, state = trained(tx, 10, CONV_PARAMS, CONV_BATCH)
    adam = problems.adam(0.01)
    weights = {n: as_matrix(n, CONV_PARAMS[n]) for n in GROUPS} | {"b": CONV_PARAMS["b"]}
    matrices = {n: jnp.stack([jnp.eye(w.shape[2])] * w.shape[0])
                for n, w in weights.items() if n in GROUPS}  # fmt: skip

    @jax.jit
    def literal_step(weights, matrices, inner):
        def mean_loss(weights):
            losses, inputs = literal_net(weights, matrices, CONV_BATCH)
            return losses.mean(), inputs

        gradient, inputs = jax.grad(mean_loss, has_aux=True)(weights)
        updates, inner = adam.update(gradient, inner, weights)
        return optax.apply_updates(weights, updates), inner, inputs

    inner = adam.init(weights)
    for _ in range(10):
        weights, inner, inputs = literal_step(weights, matrices, inner)
        for name, old in matrices.items():
            z = np.asarray(inputs[name])
            moved = [numpy_move(np.asarray(m), z[:, g], kappa) for g, m in enumerate(old)]
            matrices[name] = jnp.asarray(np.stack(moved))
    for name in GROUPS:
        assert float(state[1].layers[name].rate[0]) == RATE  # not lowered
        np.testing.assert_allclose(
            state[1].layers[name].matrix, matrices[name], rtol=1e-9, atol=1e-12
        )
        folded = weights[name] @ matrices[name]
        np.testing.assert_allclose(
            as_matrix(name, params[name]), folded, rtol=1e-9, atol=1e-12
        )
    np.testing.assert_allclose(params["b"], weights["b"], rtol=1e-9)
    assert int(state[1].edited) == -1


# ----------------------------------------------------------------------- single updates


@pytest.mark.parametrize("rule", ["dbp", "whiten", "foof"])
def test_the_first_step_is_the_inner_optimisers(rule):
    """R is the identity until it moves, behind the update."""
    inner = problems.adam(0.01)
    gradient = problems.gradient(loss_fn, PARAMS, BATCH)
    expected, _ = jax.jit(inner.update)(gradient, inner.init(PARAMS), PARAMS)
    tx = bpfree.decorrelate(
        inner, loss_fn, example_batch=BATCH, rule=rule, every=1, block=None
    )
    updates, state = jax.jit(
        lambda: tx.update(gradient, tx.init(PARAMS), PARAMS, batch=BATCH)
    )()
    for name, kernel in PARAMS.items():  # to the last bits: the programs are two
        if name in state.weights:
            np.testing.assert_allclose(
                state.weights[name], kernel + expected[name], rtol=1e-15
            )
        else:
            np.testing.assert_allclose(updates[name], expected[name], rtol=1e-15)


def test_a_step_on_w_is_a_step_on_a_with_the_gradient_times_r_r():
    """SGD with R held: dA = -eta G R^T R, in blocks of the inputs too."""
    tx = wrapped(problems.lenient(optax.sgd(0.1)), rule="dbp", until=3, block=4)
    params, state = trained(tx, 4)
    gradient = problems.gradient(loss_fn, params, BATCH)
    _, _, updates = compiled(tx)(params, state, BATCH)
    layouts = decorrelation.inputs.layers(
        loss_fn, PARAMS, BATCH, decorrelation.layout.Structure(block=4)
    )
    assert [layout.sizes for layout in layouts.values()] == [(2, 6, 4), (2, 3, 3)]
    for name in layouts:
        matrix = state[1].layers[name].matrix
        assert not np.allclose(matrix[0], np.eye(matrix.shape[2]), atol=1e-3)
        g = layouts[name].matrices(gradient[name])
        expected = -0.1 * g @ matrix.swapaxes(1, 2) @ matrix
        np.testing.assert_allclose(
            layouts[name].matrices(updates[name]), expected, rtol=1e-6, atol=1e-9
        )


def test_preserving_rules_leave_the_function_where_it_is():
    """With no updates by the inner optimiser, A = W R moves; a preserved A does not."""
    still = problems.lenient(optax.set_to_zero())
    drifted, state = trained(wrapped(still, rule="dbp"), 3)
    assert not np.allclose(drifted["w"], PARAMS["w"], atol=1e-3)
    np.testing.assert_array_equal(state[1].weights["w"], PARAMS["w"])
    for rule in (decorrelation.dbp(preserve=True), "foof"):
        kept, state = trained(wrapped(still, rule=rule), 3)
        assert_close(kept, PARAMS, rtol=0)
        moved = state[1].layers["w"].matrix[0]
        assert not np.allclose(moved, np.eye(6), atol=1e-3)


def test_moves_happen_every_so_often_and_until_then():
    tx = wrapped(rule="dbp", every=3, until=5)
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for _ in range(9):
        before = state[1].layers["w"].matrix
        params, state, _ = compiled(tx)(params, state, BATCH)
        seen.append(not np.array_equal(before, state[1].layers["w"].matrix))
    assert seen == [True, False, False, True] + [False] * 5


def test_only_the_chosen_layers():
    for layers in (["w"], lambda path: path == "w"):
        assert list(wrapped(layers=layers).init(PARAMS)[1].layers) == ["w"]
    state = wrapped(rule="dbp").init(PARAMS)[1]
    assert list(state.layers) == ["v", "w"]


def test_any_estimator_feeds_it_and_metrics_tell_of_it():
    params, batch = problems.mlp_params(), problems.mlp_batch(64)
    loss = problems.mlp_loss
    tx = optax.chain(
        bpfree.node_perturbation(loss),
        bpfree.decorrelate(
            problems.adam(0.02), loss, example_batch=batch, rule="dbp", every=2
        ),
    )
    final, state = problems.train(tx, params, batch, 60)
    assert loss(final, batch).mean() < 0.5 * loss(params, batch).mean()
    told = bpfree.metrics(state)
    assert set(told) == {"decorrelation/w1", "decorrelation/w2"}
    x, h = batch["x"], jnp.tanh(batch["x"] @ final["w1"] + final["b1"][None])
    for name, z in (("w1", x), ("w2", h)):
        raw = decorrelation.moments.correlation(z[None])
        assert float(told[f"decorrelation/{name}"]) < float(raw) / 3


def test_a_part_of_the_batch_is_evenly_spaced_and_leaves_state_alone():
    def with_state(params, batch):
        return ((batch["x"] * batch["state"][None]) @ params["w"]).sum(1)

    batch = {"x": jnp.arange(24.0).reshape(8, 3), "state": jnp.ones(3)}
    part = decorrelation.inputs.evenly_spaced(
        with_state, {"w": jnp.ones((3, 2))}, batch, 0.5, ("state",)
    )
    np.testing.assert_array_equal(part["x"], batch["x"][::2])
    np.testing.assert_array_equal(part["state"], batch["state"])


def test_low_precision_weights_keep_precise_matrices():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    batch = jax.tree.map(lambda p: p.astype(jnp.bfloat16), BATCH)
    tx = wrapped(problems.lenient(optax.sgd(0.01)), rule="dbp", example_batch=batch)
    final, state = trained(tx, 5, params, batch)
    assert final["w"].dtype == jnp.bfloat16
    assert state[1].weights["w"].dtype == state[1].layers["w"].matrix.dtype == jnp.float32
    assert int(state[1].edited) == -1


# -------------------------------------------------------- resuming, edits, many devices


@pytest.mark.parametrize("rule", ["dbp", FOOF])
def test_a_saved_state_goes_on_bit_for_bit(rule):
    tx = wrapped(rule=rule, every=2, cap=5)
    half = trained(tx, 3)
    leaves, tree = jax.tree.flatten(half)
    data = [
        np.asarray(jax.random.key_data(x)) if _is_key(x) else np.asarray(x)
        for x in leaves
    ]
    back = [
        jax.random.wrap_key_data(jnp.asarray(d)) if _is_key(x) else jnp.asarray(d)
        for x, d in zip(leaves, data, strict=True)
    ]
    params, state = jax.tree.unflatten(tree, back)
    resumed = trained(tx, 3, params, state=state)[0]
    assert_close(resumed, trained(tx, 6)[0], rtol=0)


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def test_a_foreign_edit_of_a_folded_weight_is_noticed():
    tx = wrapped(rule="dbp")
    params, state = trained(tx, 2)
    assert state[1].fault_message() is None
    edited = params | {"w": params["w"].at[4, 1].add(1e-3)}
    _, state = trained(tx, 2, edited, state=state)
    assert int(state[1].edited) == 2
    message = state[1].fault_message()
    assert message.startswith("step 2: a decorrelated kernel") and "last" in message
    free = params | {"b": params["b"] + 1}  # no kernel: anybody's
    _, state = trained(tx, 2, free, state=trained(tx, 2)[1])
    assert state[1].fault_message() is None


@pytest.mark.parametrize("rule", ["dbp", FOOF])
def test_eight_devices_give_the_numbers_of_one(rule):
    """The batch over one axis, every R by its rows over the other."""
    tx = wrapped(problems.lenient(optax.sgd(0.05)), rule=rule, layers=["w"])
    params, state = trained(tx, 3)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def put(tree, *names):
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*names)))

    start = put(tx.init(PARAMS))
    layers = {"w": jax.tree.map(
        lambda a: put(a, None, "model") if a.ndim == 3 else a, start[1].layers["w"]
    )}  # fmt: skip
    start = (start[0], start[1]._replace(layers=layers))
    spread, after = trained(tx, 3, put(PARAMS), put(BATCH, "data"), start)
    assert_close(spread, params, rtol=1e-9, atol=1e-10)
    assert_close(after[1].layers, state[1].layers, rtol=1e-8, atol=1e-10)
    assert len(after[1].layers["w"].matrix.sharding.device_set) == 8


# ------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "zca"}, "'zca' is unknown.*'copi'"),
        ({"every": 0}, "every=0 must be a positive whole number"),
        ({"every": None}, "every=None must be"),
        ({"until": 2.5}, "until=2.5 must be"),
        ({"cap": True}, "cap=True must be"),
        ({"block": 0}, "block=0 must be"),
        ({"fraction": 0.0}, "fraction=0.0 must lie in"),
        ({"layers": ["b"]}, r"unknown kernels \['b'\]; the kernels are \['v'"),
        ({"layers": lambda path: False}, "no kernel is left to decorrelate"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        wrapped(**options).init(PARAMS)


def test_bad_calls():
    tx = bpfree.decorrelate(optax.sgd(0.1), loss_fn, example_batch=BATCH)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(PARAMS, state, batch=BATCH)
    with pytest.raises(ValueError, match="needs a batch"):
        tx.update(PARAMS, state, PARAMS)
    inside = optax.masked(tx, {"v": True, "w": True, "b": False})
    with pytest.raises(ValueError, match="some are masked"):
        inside.init(PARAMS)
