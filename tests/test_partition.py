"""Nets over samples and data: every device exchanges one sum of gradients, no more."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.models import convnet, recurrent, vit
from bpfree.program import partition, tags
from bpfree.sampling import loop
from tests import problems
from tests.statistics import assert_close
from tests.test_mesh import reduced

# Devices sum losses of about log 10 in another order than one device does: each is off by
# an eps of itself, and the estimate divides differences of them by sigma = 0.1.
ROUNDING = float(np.finfo(np.float32).eps * np.log(10) / 0.1) * 2

IMAGES, SEQUENCES = (16, 8, 8, 1), (16, 12, 4)
NETS = {
    "convnet": (convnet.Model(10, channels=(4, 8)), IMAGES),
    "gru": (recurrent.Model(10, hidden=8), SEQUENCES),
    "vit": (vit.Model(10, width=8, depth=1, heads=2, patch=4), IMAGES),
}


def case(name):
    """(loss function, params, batch) in float32, as nets are trained."""
    model, shape = NETS[name]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    batch = {"x": x, "label": np.arange(shape[0]) % 10}
    params = model.init(jax.random.key(0), x)["params"]
    loss = optax.softmax_cross_entropy_with_integer_labels
    return bpfree.supervised(model, loss), params, batch


def compiled(loss_fn, params, batch, sharding=None, **options):
    options = {"num_samples": 8, "chunk_size": 4, "sigma": 0.1} | options
    make = options.pop("make", bpfree.node_perturbation)
    tx = make(loss_fn, sharding=sharding, **options)
    state = tx.init(params)
    update = jax.jit(lambda p, b: tx.update(None, state, p, batch=b)[0])
    return update.lower(params, batch).compile()


def spread(params, batch):
    """(sharding of the samples, params, batch) over 2 x 4 devices."""
    types = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("sample", "data"), axis_types=types)
    everywhere, by_data, by_sample = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",), ("sample",))
    )
    return by_sample, jax.device_put(params, everywhere), jax.device_put(batch, by_data)


@pytest.mark.parametrize(
    "name", ["convnet", "gru", pytest.param("vit", marks=pytest.mark.slow)]
)
def test_devices_exchange_gradients_once(name):
    """One sum of gradients over both axes; no activation, signal or noise."""
    loss_fn, params, batch = case(name)
    sharding, far_params, far_batch = spread(params, batch)
    program = compiled(loss_fn, far_params, far_batch, sharding)
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in program.as_text()
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    losses = 4 * len(batch["label"])
    assert size <= reduced(program) <= size + losses
    one = compiled(loss_fn, params, batch)(params, batch)
    assert_close(program(far_params, far_batch), one, rtol=1e-4, atol=ROUNDING)


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_kernels_with_samples_stay_on_their_device(rank, chunk_size):
    """Weight perturbation of a convnet gathers nothing, whatever axis samples are on."""
    loss_fn, params, batch = case("convnet")
    options = {"make": bpfree.weight_perturbation, "rank": rank, "sigma": 0.1}
    options |= {"num_samples": 16, "chunk_size": chunk_size}
    types = (AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("sample",), axis_types=types)
    sharding, whole = (NamedSharding(mesh, PartitionSpec(*a)) for a in (("sample",), ()))
    far_params, far_batch = jax.device_put((params, batch), whole)
    program = compiled(loss_fn, far_params, far_batch, sharding, **options)
    assert "all-gather" not in program.as_text()
    one = compiled(loss_fn, params, batch, **options)(params, batch)
    assert_close(program(far_params, far_batch), one, rtol=1e-4, atol=ROUNDING)
    sharding, far_params, far_batch = spread(params, batch)
    program = compiled(loss_fn, far_params, far_batch, sharding, **options)
    assert_close(program(far_params, far_batch), one, rtol=1e-4, atol=ROUNDING)


@pytest.mark.parametrize("teacher", ["responses", "jvp"])
def test_predicting_kernels_are_fitted_where_their_samples_are(teacher):
    """Of a convnet: the misfit's gradient by a kernel gathers nothing."""
    loss_fn, params, batch = case("convnet")
    mesh = jax.make_mesh((8,), ("sample",), axis_types=(AxisType.Auto,))
    sharding, whole = (NamedSharding(mesh, PartitionSpec(*a)) for a in (("sample",), ()))

    def fitted(sharding, params, batch):
        tx = bpfree.learned_feedback(
            loss_fn,
            example_batch=batch,
            num_samples=8,
            teacher=teacher,
            fit=optax.sgd(0.1),
            sharding=sharding,
        )
        state = tx.init(params)
        update = jax.jit(lambda p, b: tx.update(None, state, p, batch=b)[1].inner.weights)
        program = update.lower(params, batch).compile()
        return program.as_text(), program(params, batch)

    text, many = fitted(sharding, *jax.device_put((params, batch), whole))
    assert "all-gather" not in text
    assert_close(many, fitted(None, params, batch)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layerwise", [False, True])
def test_noisy_pairing_of_a_convnet(layerwise):
    """Only what noise reaches has samples: the rest is differentiated as it stands."""
    loss_fn, params, batch = case("convnet")
    sharding, far_params, far_batch = spread(params, batch)
    options = {"make": bpfree.likelihood_ratio, "layerwise": layerwise}
    program = compiled(loss_fn, far_params, far_batch, sharding, **options)
    one = compiled(loss_fn, params, batch, **options)(params, batch)
    assert_close(program(far_params, far_batch), one, rtol=1e-4, atol=ROUNDING)


@jax.custom_vjp
def twice(x):
    return 2 * x


twice.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def loss_with_aux(params, batch):
    return problems.mlp_loss(params, batch), {"size": jnp.abs(batch["x"]).max()}


def loss_in_reverse_only(params, batch):
    halved = {name: p / 2 for name, p in params.items()}
    return problems.mlp_loss(jax.tree.map(twice, halved), batch)


@pytest.mark.parametrize("loss_fn", [loss_with_aux, loss_in_reverse_only])
def test_losses_with_aux_and_blocks_without_a_tangent_map(loss_fn):
    params, batch = problems.mlp_params(), problems.mlp_batch(8)
    sharding, far_params, far_batch = spread(params, batch)
    batches = {"example_batch": batch}
    program = compiled(loss_fn, far_params, far_batch, sharding, **batches)
    one = compiled(loss_fn, params, batch, **batches)(params, batch)
    assert_close(program(far_params, far_batch), one, rtol=1e-5, atol=1e-6)


def test_the_gate_sees_samples_in_front_of_the_batch(monkeypatch):
    """The fault, planted: convolutions as `vmap` makes them gather the batch."""
    monkeypatch.setattr(loop, "samples_inside", tags.bind_eqn)
    loss_fn, params, batch = case("convnet")
    sharding, params, batch = spread(params, batch)
    assert "all-gather" in compiled(loss_fn, params, batch, sharding).as_text()


# ------------------------------------------------------------------------- by themselves

SPECS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "HWIO", "HWNC")]


@pytest.mark.parametrize("specs", SPECS)
@pytest.mark.parametrize("mapped", [(0, None), (0, 0), (None, 0)])
def test_samples_inside_a_convolution(specs, mapped):
    sizes = {"N": 2, "H": 5, "W": 4, "C": 3, "I": 3, "O": 6}
    kernels = sizes | {"H": 3, "W": 2}
    rng = np.random.default_rng(0)
    shapes = [[sizes[c] for c in specs[0]], [kernels[c] for c in specs[1]]]
    shapes = [[7] * (m == 0) + s for s, m in zip(shapes, mapped, strict=True)]
    args = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]

    def conv(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 1), "SAME", dimension_numbers=specs
        )

    one = [a[0] if m == 0 else a for a, m in zip(args, mapped, strict=True)]
    (eqn,) = jax.make_jaxpr(conv)(*one).eqns
    inside = jax.vmap(lambda *a: partition.samples_inside(eqn, a)[0], mapped)
    np.testing.assert_allclose(
        inside(*args), jax.vmap(conv, mapped)(*args), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "sums, axes_left",
    [
        (lambda a, b: jnp.einsum("rbi,rbo->io", a[:, 0], b[:, 0]), 1),
        (lambda a, b: jnp.einsum("rtbi,rtbo->io", a, b), 2),
        (lambda a, b: jnp.einsum("trbi,rbto->io", a.swapaxes(0, 1), b.swapaxes(1, 2)), 2),
        (lambda a, b: jnp.einsum("rtbi,rtbo->tio", a, b), None),  # a batched product
        (lambda a, b: a.sum((0, 1, 2)), 2),
        (lambda a, b: b[:, 0].sum((0, 1)), 1),
        (lambda a, b: b.sum((0, 1)), 2),  # rows and time: nothing to merge
    ],
)
def test_rows_and_batch_are_one_axis_of_a_sum(sums, axes_left):
    """Of 3 rows and 5 examples, wherever the axes stand and with 4 steps between."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(3, 4, 5, n))) for n in (2, 6))
    merged = partition.rows_merged(sums, 3, 5)
    np.testing.assert_allclose(merged(a, b), sums(a, b), rtol=1e-12)
    jaxpr = jax.make_jaxpr(merged)(a, b)
    summed = [
        eqn.params["dimension_numbers"][0][0]
        if eqn.primitive is lax.dot_general_p
        else eqn.params["axes"]
        for eqn in jaxpr.eqns
        if eqn.primitive in (lax.dot_general_p, lax.reduce_sum_p)
    ]
    assert axes_left is None or [len(axes) for axes in summed] == [axes_left]
