"""One device and eight give the same estimate, and each does its own share of work."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.estimators import perturbation
from bpfree.program import tags
from tests import problems
from tests.statistics import assert_close, relative_error

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch(8)
OPTIONS = {
    "clean": (bpfree.node_perturbation, {}),
    "noisy": (bpfree.likelihood_ratio, {}),
    "leave_one_out": (bpfree.node_perturbation, {"baseline": "leave_one_out"}),
    "two passes": (bpfree.activity_node_perturbation, {"reference": "noisy"}),
}
both_pairings = pytest.mark.parametrize("name", OPTIONS)


def mesh_of(**axes):
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def estimator(name, sharding=None, loss=problems.mlp_loss, **options):
    make, more = OPTIONS[name]
    # Five draws a device, two at a time: the last step of the loop is a shorter one.
    options = {"num_samples": 40, "sigma": 0.1, "chunk_size": 2} | options
    return make(loss, sharding=sharding, **more, **options)


def compiled(tx, params=PARAMS, batch=BATCH):
    state = tx.init(params)

    def update(params, batch):
        return tx.update(None, state, params, batch=batch)[0]

    return jax.jit(update).lower(params, batch).compile()


def samples_over_eight():
    return NamedSharding(mesh_of(sample=8), PartitionSpec("sample"))


@both_pairings
def test_eight_devices_give_the_estimate_of_one(name):
    one = compiled(estimator(name))(PARAMS, BATCH)
    program = compiled(estimator(name, samples_over_eight()))
    eight = program(PARAMS, jax.device_put(BATCH, program.input_shardings[0][1]))
    assert_close(eight, one, rtol=1e-5, atol=1e-6)
    assert len(eight["w1"].sharding.device_set) == 8


@both_pairings
def test_samples_and_data_over_a_mesh(name):
    """2 x 4: samples over one axis, the batch over the other."""
    mesh = mesh_of(sample=2, data=4)
    sharding = NamedSharding(mesh, PartitionSpec("sample"))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    one = compiled(estimator(name))(PARAMS, BATCH)
    eight = compiled(estimator(name, sharding), params, batch)(params, batch)
    assert_close(eight, one, rtol=1e-5, atol=1e-6)


def test_devices_that_pull_their_own_signals(monkeypatch, name="clean"):
    """The block behind the last node counts once, however many devices pull."""
    monkeypatch.setattr(perturbation, "_is_apart", lambda run: True)
    program = compiled(estimator(name, samples_over_eight()))
    monkeypatch.undo()
    eight = program(PARAMS, jax.device_put(BATCH, program.input_shardings[0][1]))
    assert_close(eight, compiled(estimator(name))(PARAMS, BATCH), rtol=1e-5, atol=1e-6)


def test_samples_over_two_mesh_axes():
    mesh = mesh_of(host=2, chip=4)
    sharding = NamedSharding(mesh, PartitionSpec(("host", "chip")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec()))
    one = compiled(estimator("clean"))(PARAMS, BATCH)
    eight = compiled(estimator("clean", sharding), params, batch)(params, batch)
    assert_close(eight, one, rtol=1e-5, atol=1e-6)


def pulled_under_shard_map(pull):
    """The batch over eight devices by hand, with signals of the mean over all of it."""
    params, batch = problems.linear_params(), problems.mlp_batch(16)
    data = PartitionSpec("data")
    sharded = jax.shard_map(
        pull,
        mesh=mesh_of(data=8),
        in_specs=(PartitionSpec(), data, data),
        out_specs=PartitionSpec(),
    )
    signals = {"y": batch["t"]}
    truth = bpfree.pullback(problems.linear_loss)(params, batch)[2](signals)
    return jax.jit(sharded)(params, batch, signals), truth


def local_pull(params, batch, signals):
    return bpfree.pullback(problems.linear_loss)(params, batch)[2](signals)


def test_pullback_under_shard_map_is_already_summed():
    pulled, truth = pulled_under_shard_map(local_pull)
    assert_close(pulled, truth, rtol=1e-12)


@both_pairings
def test_an_estimator_inside_shard_map_sums_over_devices(name):
    """As `jax.grad` there: the sum of what each device's part of the batch gives."""
    mesh = mesh_of(data=4)
    tx = estimator(name)
    state = tx.init(PARAMS)

    def update(params, batch, state=state):
        return tx.update(None, state, params, batch=batch)[0]

    spec = PartitionSpec("data")
    mapped = jax.shard_map(
        update, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()
    )
    found = jax.jit(mapped)(PARAMS, BATCH)
    parts = [jax.tree.map(lambda a, i=i: a[2 * i : 2 * i + 2], BATCH) for i in range(4)]
    mean = lambda p, part: problems.mlp_loss(p, part).mean()  # noqa: E731
    truth = sum(flat(jax.grad(mean)(PARAMS, part)) for part in parts)
    scale = truth @ flat(found) / (truth @ truth)
    assert 0.5 < scale < 1.5  # not D, and not 1 / D
    same = jax.tree.map(lambda *g: sum(g), *(update(PARAMS, part) for part in parts))
    assert relative_error(same, found) > 0.1  # shards draw noise of their own


def test_a_learned_sigma_is_one_for_all_shards(monkeypatch):
    """Its step is the mean of those of the shards, each with noise of its own."""
    learned = {"sigma_optimizer": optax.sgd(0.1), "example_batch": BATCH}
    tx = estimator("noisy", **learned)
    state = tx.init(PARAMS)

    def updated(params, batch):
        log_sigma = tx.update(None, state, params, batch=batch)[1].inner.log_sigma
        return jax.tree.map(lambda a: a[None], log_sigma)

    def mapped(out):
        specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": out}
        run = jax.shard_map(updated, mesh=mesh_of(data=4), **specs)
        return jax.jit(run)(PARAMS, BATCH)

    found = mapped(PartitionSpec())
    monkeypatch.setattr(tags, "sum_shards", lambda tree, *_: tree)
    own = mapped(PartitionSpec("data"))  # (4, channels)
    mean = jax.tree.map(lambda a: a.mean(0, keepdims=True), own)
    assert_close(found, mean, rtol=1e-6)
    assert float(own["h"].std(0).min()) > 1e-4


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def test_an_explicit_mesh_is_refused_with_advice():
    mesh = jax.make_mesh((8,), ("sample",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"AxisType.Auto"):
        estimator("clean", NamedSharding(mesh, PartitionSpec("sample")))


def test_a_factor_of_the_number_of_devices_would_be_seen():
    """The fault, planted: a vjp by replicated parameters holds the sum over devices, so
    that summing it once more multiplies it by their number."""
    pulled, truth = pulled_under_shard_map(
        lambda *args: lax.psum(local_pull(*args), "data")
    )
    assert relative_error(pulled, truth) == pytest.approx(7.0)
    with pytest.raises(AssertionError):
        assert_close(pulled, truth, rtol=1e-5, atol=1e-6)


def test_the_devices_must_divide_the_draws():
    with pytest.raises(ValueError, match="12 draws of 1 samples do not divide over 8"):
        estimator("clean", samples_over_eight(), num_samples=12)
    with pytest.raises(ValueError, match="4 draws of 2 samples do not divide over 8"):
        estimator("clean", samples_over_eight(), num_samples=8, antithetic=True)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, "sample")])
def test_a_sharding_that_shards_no_samples(spec):
    with pytest.raises(ValueError, match="first axis"):
        estimator("clean", NamedSharding(mesh_of(sample=8), spec))


# ------------------------------------------------------------------ the compiled program

WIDE = problems.mlp_params(jnp.float32, width=64)
WIDE_BATCH = problems.mlp_batch(8, jnp.float32, width=64)


def flops(name, sharding, chunk_size, num_samples=128):
    """Per device. XLA counts the body of a loop once, however often it runs."""
    options = {"chunk_size": chunk_size, "num_samples": num_samples}
    tx = estimator(name, sharding, **options)
    return compiled(tx, WIDE, WIDE_BATCH).cost_analysis()["flops"]


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_each_device_does_its_share(name):
    """[shardes] replicated the work in silence. Here two loop steps of 64 draws each."""
    once = flops(name, None, 1)
    outside = once - (flops(name, None, 2) - once)
    alone = flops(name, None, 64) - outside
    shared = flops(name, samples_over_eight(), 8) - outside
    assert shared < 1.1 * alone / 8


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_devices_exchange_sums_only(name):
    """All-reduce of signals or gradients, and no activation gathered anywhere."""
    mesh = mesh_of(sample=2, data=4)
    batch = jax.device_put(WIDE_BATCH, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(WIDE, NamedSharding(mesh, PartitionSpec()))
    tx = estimator(name, NamedSharding(mesh, PartitionSpec("sample")))
    text = compiled(tx, params, batch).as_text()
    assert "all-reduce" in text
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in text
