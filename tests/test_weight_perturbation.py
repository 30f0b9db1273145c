"""Weight perturbation: the gradient on average, its noise, baselines, replay and cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.estimators import weight_noise
from bpfree.hardware import kernels
from tests import problems
from tests.statistics import LIMIT, assert_close, flat, mean_gate

WIDTH = 4  # so that a matrix has more numbers than its factors
PARAMS, BATCH = problems.mlp_params(width=WIDTH), problems.mlp_batch(width=WIDTH)
TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)


def estimates(loss_fn=problems.mlp_loss, repeats=1024, params=PARAMS, **options):
    options = {"num_samples": 32, "sigma": 1e-3} | options
    tx = bpfree.weight_perturbation(loss_fn, **options)
    return problems.estimates(tx, params, BATCH, repeats)


# ---------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"antithetic": True, "baseline": "none"},
        {"noise": "gaussian", "baseline": "leave_one_out"},
        {"rank": 1},
        {"rank": 1, "noise": "gaussian", "antithetic": True, "baseline": "leave_one_out"},
        {"sigma": 1e-2, "num_samples": 8},
    ],
    ids=str,
)
def test_the_expectation_is_the_gradient_at_small_sigma(options):
    gate = mean_gate(estimates(**options), TRUTH)
    assert gate.passed and gate.error < 0.03, gate


def test_gaussian_noise_estimates_the_smoothed_gradient():
    """At large sigma, without bias; differentiating through the noise is the truth."""
    sigma = 0.3

    def smoothed(params, key):
        keys = iter(jax.random.split(key, len(params)))
        moved = jax.tree.map(
            lambda p: p + sigma * jax.random.normal(next(keys), p.shape, p.dtype), params
        )
        return problems.mlp_loss(moved, BATCH).mean()

    def one(key):
        keys = jax.random.split(key, 32)
        return jax.grad(lambda p: jax.vmap(smoothed, (None, 0))(p, keys).mean())(PARAMS)

    truth = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), 1024))
    found = estimates(noise="gaussian", sigma=sigma)
    gate = mean_gate(found, truth, truth_repeats=True)
    assert gate.passed and gate.error < 0.03, gate
    assert not mean_gate(found, TRUTH).passed  # the two truths are told apart


def test_one_seed_for_all_parameters_would_be_seen(monkeypatch):
    """Planted: matrices of one shape get the same noise [es-at-scale]."""
    monkeypatch.setattr("bpfree.sampling.noise.name_hash", lambda name: 0)
    assert not mean_gate(estimates(), TRUTH).passed


def test_a_forgotten_factor_would_be_seen(monkeypatch):
    """Planted: factors without 1 / sqrt(r)."""
    monkeypatch.setattr(weight_noise, "math", FakeMath)
    params, batch = problems.mlp_params(width=8), problems.mlp_batch(width=8)
    tx = bpfree.weight_perturbation(problems.mlp_loss, num_samples=32, sigma=1e-3, rank=2)
    found = problems.estimates(tx, params, batch, repeats=256)
    assert not mean_gate(
        found, problems.gradient(problems.mlp_loss, params, batch)
    ).passed


class FakeMath:
    prod = staticmethod(weight_noise.math.prod)
    sqrt = staticmethod(lambda r: 1.0)


def test_functions_without_nodes_or_derivatives():
    """A while loop, a threshold and a call to NumPy; closed form of one sign."""

    def on_host(y):
        return np.asarray(y) ** 2

    def loss(params, batch):
        h = lax.while_loop(
            lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * 2), (0, batch["x"])
        )
        y = jnp.where(h[1] @ params["w"] > 0, 3.0, 1.0)
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(on_host, shape, y, vmap_method="expand_dims")

    batch = {"x": BATCH["x"][:1]}
    params = {"w": jnp.asarray([0.3, -0.2, 0.5, 0.1])}
    tx = bpfree.weight_perturbation(loss, num_samples=64, sigma=0.5, noise="gaussian")
    found = problems.estimates(tx, params, batch, repeats=512)
    x = batch["x"][0]
    norm = jnp.linalg.norm(x) * 0.5
    density = jax.scipy.stats.norm.pdf(x @ params["w"] / norm) / norm
    gate = mean_gate(found, {"w": 8.0 * density * x})
    assert gate.passed and gate.error < 0.02, gate


def test_statistics_that_others_hold_move():
    """So the gradient is the whole one, as backprop's."""

    def loss(params, batch):
        y = batch["x"] @ params["w1"]
        y = y - bpfree.hold(y.mean(0, keepdims=True), "mean")
        return ((y * params["b1"][None] - batch["t"]) ** 2).sum(1)

    params = {k: PARAMS[k] for k in ("w1", "b1")}
    truth = problems.gradient(loss, params, BATCH)
    assert mean_gate(estimates(loss, params=params), truth).passed


def test_parameters_that_are_frozen_or_unused_stay_where_they_are():
    """Their gradient is zero, and their noise would be in the gradient of the others."""

    def loss(params, batch):
        frozen = lax.stop_gradient(params["w2"])
        return ((batch["x"] @ params["w1"] @ frozen - batch["t"]) ** 2).sum(1)

    tx = bpfree.weight_perturbation(loss, num_samples=4)
    found = problems.estimates(tx, PARAMS, BATCH, 2)
    alone = problems.estimates(
        bpfree.weight_perturbation(
            lambda p, b: loss(p | {"w2": PARAMS["w2"]}, b), num_samples=4
        ),
        {"w1": PARAMS["w1"]},
        BATCH,
        2,
    )
    assert not any(jnp.any(found[k] != 0) for k in ("w2", "b1", "b2", "scale"))
    assert_close(found["w1"], alone["w1"], rtol=1e-6)


def test_combine_perturbs_only_what_is_asked_for():
    labels = {"w1": "wp", "b1": "wp", "w2": "bp", "b2": "bp", "scale": "bp"}
    parts = {
        "wp": bpfree.weight_perturbation(problems.mlp_loss, num_samples=32, sigma=1e-3),
        "bp": bpfree.backprop(problems.mlp_loss),
    }
    found = problems.estimates(bpfree.combine(parts, labels), PARAMS, BATCH, 512)
    assert mean_gate(found, TRUTH).passed
    assert (
        flat(found, repeats=True).var(0).sum()
        < flat(estimates(), repeats=True).var(0).sum()
    )


# ------------------------------------------------------- the definition, sample by sample


def naive(options, key, weights):
    """The estimate from all noise and all losses, stored."""
    noise_key = jax.random.split(key)[0]
    signs = jnp.asarray([1.0, -1.0] if options.get("antithetic") else [1.0])
    plan = weight_noise.PLANS[options.get("noise", "rademacher")]

    def full(z):
        return z.left @ z.right.T if isinstance(z, tuple) else z

    def one(index, sign):
        drawn = weight_noise.draw(plan, options.get("rank"), noise_key, index, PARAMS)
        z = {name: sign * full(z).astype(jnp.float64) for name, z in drawn.items()}
        moved = jax.tree.map(lambda p, z: p + options["sigma"] * z, PARAMS, z)
        return problems.mlp_loss(moved, BATCH).mean(), z

    draws = jnp.repeat(jnp.arange(options["num_samples"] // len(signs)), len(signs))
    signs = jnp.resize(signs, draws.shape)
    losses, noise = jax.jit(jax.vmap(one))(draws, signs)
    scaled = weights(np.asarray(losses)) / (options["num_samples"] * options["sigma"])
    return jax.tree.map(lambda z: np.tensordot(scaled, z, 1), noise)


def clean(losses):
    return losses - float(problems.mlp_loss(PARAMS, BATCH).mean())


def left_out(losses, group=1):
    draws = losses.reshape(-1, group)
    others = [np.delete(draws, k, 0).mean() for k in range(len(draws))]
    return (draws - np.asarray(others)[:, None]).ravel()


SHAPES = {
    "clean": ({}, clean),
    "none": ({"baseline": "none"}, lambda losses: losses),
    "pairs": ({"antithetic": True, "rank": 1}, clean),
    "left out": (
        {"baseline": "leave_one_out", "antithetic": True, "noise": "gaussian"},
        functools.partial(left_out, group=2),
    ),
    "standardise": (
        {"baseline": "standardise", "rank": 1, "noise": "gaussian"},
        lambda losses: (losses - losses.mean()) / losses.std(),
    ),
}


@pytest.mark.parametrize("options, weights", SHAPES.values(), ids=SHAPES)
def test_it_is_the_sum_of_its_definition(options, weights):
    """The losses and the noise that is drawn again for the sum belong together."""
    options = {"num_samples": 10, "sigma": 0.1, "chunk_size": 4} | options
    truth = naive(options, jax.random.split(jax.random.key(0), 1)[0], weights)
    found = jax.tree.map(lambda g: np.asarray(g[0]), estimates(repeats=1, **options))
    assert_close(found, truth, 1e-4, 1e-5)


@pytest.mark.parametrize("rank", [None, 1])
def test_the_chunk_size_does_not_change_the_estimate(rank):
    options = {"num_samples": 10, "repeats": 1, "sigma": 0.1, "rank": rank}
    one, all_at_once = (estimates(chunk_size=c, **options) for c in (1, 10))
    assert_close(one, all_at_once, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("noise", weight_noise.PLANS)
@pytest.mark.parametrize("rank", [None, 1, 2])
def test_noise_has_covariance_one(noise, rank):
    """Entries of two matrices of one shape and of a vector: of variance 1, and alone."""
    draws = 8192
    params = {"a": jnp.zeros((3, 2, 5)), "b": jnp.zeros((3, 2, 5)), "c": jnp.zeros(3)}
    plan = weight_noise.PLANS[noise]
    key = jax.random.key(0)

    def one(index):
        z = weight_noise.draw(plan, rank, key, index, params)
        full = lambda z: z.left @ z.right.T if isinstance(z, tuple) else z  # noqa: E731
        return jnp.concatenate([full(z[k]).ravel() for k in sorted(z)])

    x = np.asarray(jax.jit(jax.vmap(one))(jnp.arange(draws)), np.float64)
    assert np.abs(x.mean(0) / (x.std(0) / draws**0.5)).max() < LIMIT
    products = x.T @ x / draws
    spread = np.sqrt((x**2).T @ x**2 / draws - products**2 + 1e-12) / draws**0.5
    z = (products - np.eye(x.shape[1])) / (spread + 1e-6)
    assert np.abs(z).max() < LIMIT


def test_factors_are_for_parameters_that_they_make_smaller():
    params = {"w": jnp.zeros((8, 6)), "b": jnp.zeros(8), "thin": jnp.zeros((8, 1))}
    plan = weight_noise.PLANS["rademacher"]
    z = weight_noise.draw(plan, 2, jax.random.key(0), jnp.int32(0), params)
    assert z["w"].left.shape == (8, 2) and z["w"].right.shape == (6, 2)
    assert z["b"].shape == (8,) and z["thin"].shape == (8, 1)


# ------------------------------------------------------------------------------- devices


def mesh_of(**axes):
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


@pytest.mark.parametrize("options", [{}, {"rank": 1, "baseline": "standardise"}], ids=str)
def test_eight_devices_give_the_estimate_of_one(options):
    options = {"num_samples": 40, "sigma": 0.1, "chunk_size": 2} | options
    sharding = NamedSharding(mesh_of(sample=8), PartitionSpec("sample"))
    one = estimates(repeats=1, **options)
    tx = bpfree.weight_perturbation(problems.mlp_loss, sharding=sharding, **options)
    key = jax.random.split(jax.random.key(0), 1)[0]
    run = jax.jit(lambda p: tx.estimator.estimate(key, p, BATCH, tx.init(p)).gradient)
    eight = run(PARAMS)
    assert len(eight["w1"].sharding.device_set) == 8
    assert_close(eight, jax.tree.map(lambda g: g[0], one), rtol=1e-5, atol=1e-6)


def test_inside_shard_map_it_sums_over_devices():
    """As `jax.grad` there, with noise of its own on each device."""
    batch = problems.mlp_batch(8, width=WIDTH)
    tx = bpfree.weight_perturbation(problems.mlp_loss, num_samples=512, sigma=1e-3)
    state = tx.init(PARAMS)

    def update(params, batch):
        return tx.update(None, state, params, batch=batch)[0]

    spec = PartitionSpec("data")
    mapped = jax.shard_map(
        update,
        mesh=mesh_of(data=4),
        in_specs=(PartitionSpec(), spec),
        out_specs=PartitionSpec(),
    )
    found, truth = (
        flat(jax.jit(mapped)(PARAMS, batch)),
        flat(problems.gradient(problems.mlp_loss, PARAMS, batch)),
    )
    assert 3.0 < found @ truth / (truth @ truth) < 5.0


# ---------------------------------------------------------------------------------- cost


def compiled(num_samples=64, **options):
    params = {
        "w1": jnp.zeros((256, 64), jnp.float32),
        "w2": jnp.zeros((64, 64), jnp.float32),
    }
    batch = jnp.zeros((32, 256), jnp.float32)
    loss = lambda p, x: (jnp.tanh(x @ p["w1"]) @ p["w2"]).sum(1)  # noqa: E731
    tx = bpfree.weight_perturbation(loss, num_samples=num_samples, **options)
    update = lambda p, x: tx.update(None, tx.init(p), p, batch=x)[0]  # noqa: E731
    return jax.jit(update).lower(params, batch).compile()


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    "options", [{}, {"rank": 1}, {"baseline": "standardise"}], ids=str
)
def test_memory_does_not_grow_with_the_samples(options):
    few, many = (
        compiled(n, **options).memory_analysis().temp_size_in_bytes for n in (64, 1024)
    )
    parameters = 4 * (256 * 64 + 64 * 64)
    assert parameters < few < 12 * parameters
    numbers = 6 if "baseline" in options else 0  # for each sample: its loss, rank, ...
    assert many <= 1.2 * few + 8 * numbers * 1024


@pytest.mark.usefixtures("optimized")
def test_factors_skip_the_first_product_and_never_form_the_matrix():
    """XLA counts the body of the loop over samples once."""
    one, two = (compiled(rank=1, chunk_size=c).cost_analysis()["flops"] for c in (1, 2))
    first, second = 2 * 32 * 256 * 64, 2 * 32 * 64 * 64
    thin = 2 * 32 * (256 + 64 + 64 + 64) + 2 * (256 * 64 + 64 * 64)  # x A, B, and credit
    assert second < two - one < second + 2 * thin < first


# --------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 0}, "num_samples=0 must be a positive"),
        ({"num_samples": 3, "antithetic": True}, "antithetic samples come in pairs"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"baseline": "leave_one_out", "num_samples": 1}, "at least two draws"),
        ({"baseline": "mean"}, "baseline='mean' is unknown"),
        ({"noise": "laplace"}, "noise='laplace' is unknown"),
        ({"sigma": 0.0}, "sigma=0.0 must be a positive"),
        ({"rank": 0}, "rank=0 must be None or a positive"),
        ({"rank": 1.5}, "rank=1.5 must be None or a positive"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        bpfree.weight_perturbation(problems.mlp_loss, **options)


def test_faults_are_named():
    tx = bpfree.weight_perturbation(
        problems.mlp_loss,
        num_samples=2,
        sigma=lambda step: 0.1 - step.astype(jnp.float32),
    )
    update = jax.jit(lambda s, b: tx.update(None, s, PARAMS, batch=b)[1])
    message = functools.partial(bpfree.fault_message, loss_fn=problems.mlp_loss)
    state = update(update(tx.init(PARAMS), BATCH), BATCH)
    assert "step 1: sigma" in message(state, params=PARAMS, batch=BATCH)
    bad = BATCH | {"t": BATCH["t"].at[0, 0].set(jnp.nan)}
    state = update(tx.init(PARAMS), bad)
    assert "step 0: a loss is not finite" in message(state, params=PARAMS, batch=bad)


def test_factors_credited_together_add_up_as_chunk_by_chunk(monkeypatch):
    """Several chunks of losses are one product of factors; the draws are the same."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(64, 64)))}
    batch = {"x": jnp.asarray(rng.normal(size=(4, 64)))}

    def estimate():
        loss = lambda p, b: jnp.tanh(b["x"] @ p["w"]).sum(1)  # noqa: E731
        tx = bpfree.weight_perturbation(loss, num_samples=12, rank=1, chunk_size=2)
        run = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=batch)[0])
        return run(params), str(jax.make_jaxpr(run)(params))

    together, program = estimate()
    layout = weight_noise.make_layout(weight_noise.PLANS["rademacher"], 1, 12, 2, None)
    assert weight_noise.credited_together(layout, 1, params).chunk == 2 * layout.chunk
    monkeypatch.setattr(weight_noise, "credited_together", lambda layout, *_: layout)
    alone, other = estimate()
    assert_close(together, alone, rtol=1e-5, atol=1e-5)  # weights are float32
    assert program != other


# ------------------------------------------------------------------------- seed replay


def wide_problem(dtype=jnp.float64):
    rng = np.random.default_rng(1)
    params = {k: jnp.asarray(rng.normal(size=(64, 64)) / 8, dtype) for k in ("w1", "w2")}
    batch = {"x": jnp.asarray(rng.normal(size=(4, 64)), dtype)}

    def loss(params, batch):
        return (jnp.tanh(batch["x"] @ params["w1"]) @ params["w2"]).sum(1)

    return loss, params, batch


@pytest.mark.parametrize(
    "options",
    [{"rank": 1}, {"antithetic": True}, {"rank": 1, "baseline": "leave_one_out"}],
)
def test_seed_replay_moves_parameters_as_sgd_does(options):
    loss, params, batch = wide_problem()
    options = {"num_samples": 6, "sigma": 0.1, **options}
    rate = lambda count: 0.01 / (1 + count.astype(jnp.float32))  # noqa: E731
    chain = optax.chain(bpfree.weight_perturbation(loss, **options), optax.sgd(rate))
    replay = bpfree.seed_replay(loss, rate, **options)
    step = jax.jit(replay.step)
    moved, state = params, replay.init(params)
    wanted, other = params, chain.init(params)
    for _ in range(2):
        moved, state = step(moved, state, batch)
        updates, other = chain.update(None, other, wanted, batch=batch)
        wanted = optax.apply_updates(wanted, updates)
    change = jax.tree.map(jnp.subtract, moved, params)
    assert_close(change, jax.tree.map(jnp.subtract, wanted, params), 1e-5, 1e-7)
    assert float(bpfree.value(state)) == pytest.approx(float(bpfree.value(other)), 1e-5)


def test_seed_replay_holds_no_gradient(optimized):
    """Scratch of a step is less than one matrix, whatever the number of samples."""
    loss, params, batch = wide_problem(jnp.float32)

    def scratch(step, *args):
        program = jax.jit(step, donate_argnums=0).lower(*args).compile()
        return program.memory_analysis().temp_size_in_bytes

    def replay(samples):
        tx = bpfree.seed_replay(loss, 0.01, num_samples=samples, rank=1, chunk_size=2)
        return scratch(tx.step, params, tx.init(params), batch)

    tx = bpfree.weight_perturbation(loss, num_samples=32, rank=1, chunk_size=2)

    def descend(params, state, batch):
        gradient, state = tx.update(None, state, params, batch=batch)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), state

    gradient = sum(p.nbytes for p in params.values())
    assert (
        scratch(descend, params, tx.init(params), batch) > gradient
    )  # the twin holds it
    few, many = replay(32), replay(512)
    assert max(few, many) < gradient / 2 and many - few < 512 * 16


def test_seed_replay_on_eight_devices_exchanges_losses_only():
    loss, params, batch = wide_problem(jnp.float32)
    mesh = jax.make_mesh((8,), ("sample",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("sample"))

    def step(sharding):
        options = {"num_samples": 16, "sigma": 0.1, "rank": 1, "sharding": sharding}
        tx = bpfree.seed_replay(loss, 0.01, **options)
        return jax.jit(tx.step).lower(params, tx.init(params), batch).compile(), tx

    program, tx = step(sharding)
    found = kernels.read(program.as_text())
    assert 0 < sum(k.times * k.sent for k in found if k.collective) <= 16 * 16
    args = params, tx.init(params), batch
    places = jax.tree.map(
        lambda a, s: jax.device_put(a, s), args, program.input_shardings[0]
    )
    alone = step(None)[0](*args)[0]
    assert_close(program(*places)[0], alone, 1e-5, 1e-6)


def test_losses_that_no_parameter_moves_are_refused():
    params, batch = {"w": jnp.ones(3)}, jnp.ones((4, 3))
    for loss_fn in (lambda p, b: b.sum(1), lambda p, b: 3.0):
        for tx in (
            bpfree.weight_perturbation(loss_fn, num_samples=2),
            bpfree.forward_gradient(loss_fn, num_samples=2, tangents="weights"),
        ):
            with pytest.raises(ValueError, match="no parameter moves the losses"):
                tx.update(None, tx.init(params), params, batch=batch)


@pytest.mark.parametrize("options", [{"rank": 1}, {"rank": 1, "antithetic": True}, {}])
def test_products_with_ragged_groups(options):
    """JAX has no `vmap` of them over weights: samples are taken in turn."""
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4, 5), jnp.float64)}
    x = jax.random.normal(jax.random.key(1), (6, 4), jnp.float64)
    sizes = jnp.array([2, 3, 1])

    def ragged(params, batch):
        return (jax.lax.ragged_dot(batch, params["w"], sizes) ** 2).sum(1)

    def plain(params, batch):
        kernels = jnp.repeat(params["w"], sizes, axis=0, total_repeat_length=6)
        return (jnp.einsum("bi,bij->bj", batch, kernels) ** 2).sum(1)

    found = [
        problems.update(
            bpfree.weight_perturbation(f, num_samples=4, **options), params, x
        )
        for f in (ragged, plain)
    ]
    np.testing.assert_allclose(found[0][0]["w"], found[1][0]["w"], rtol=1e-6)
