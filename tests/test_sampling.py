"""Noise has the moments it promises, and the loop over samples only adds up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bpfree
from bpfree.program.tags import Site
from bpfree.sampling import signs as packing
from bpfree.sampling.loop import Layout, sum_over_draws
from bpfree.sampling.noise import (
    antithetic_plan,
    draw_chunk,
    gaussian,
    packed_signs,
    rademacher,
)
from tests import problems
from tests.statistics import LIMIT, assert_close

DRAWS = 8192
SHAPE = (2, 3)  # batch, width
PLANS = {
    "gaussian": gaussian(),
    "shared_gaussian": gaussian(8),
    "rademacher": rademacher(),
}
FOURTH_MOMENT = {"gaussian": 3.0, "shared_gaussian": 3.0, "rademacher": 1.0}
every_plan = pytest.mark.parametrize("name", PLANS)


def sites(*names, shape=SHAPE, batch_axis=0):
    return tuple(Site(n, "node", batch_axis, shape, jnp.float32) for n in names)


def draw(plan, nodes, draws=DRAWS, seed=0):
    """{name: (draws, G, *shape)}, as float64 NumPy."""
    key = jax.random.key(seed)
    one = lambda index: draw_chunk(plan, key, index[None], nodes)  # noqa: E731
    noise = jax.jit(jax.vmap(one))(jnp.arange(draws))
    assert {z.dtype for z in noise.values()} == {jnp.dtype(jnp.float32)}
    return {k: np.asarray(z, np.float64) for k, z in noise.items()}


def mean_z(values, expected):
    """z of the mean over independent rows."""
    return (values.mean(0) - expected) / (values.std(0) / len(values) ** 0.5 + 1e-12)


@every_plan
def test_moments(name):
    """Of each entry alone: mean 0, variance 1, the fourth moment of its law."""
    z = draw(PLANS[name], sites("a"))["a"]
    assert z.shape == (DRAWS, PLANS[name].group, *SHAPE)
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, FOURTH_MOMENT[name])):
        assert np.abs(mean_z(z**power, expected)).max() < LIMIT


def test_normals_of_a_node_of_16_bits_are_rounded_and_others_are_not():
    """Also where nodes of both widths, and signs, are hashed together."""
    wide = sites("a", "b", "c")
    mixed = tuple(
        s._replace(dtype=dtype)
        for s, dtype in zip(wide, (jnp.bfloat16, jnp.float32, jnp.float16), strict=True)
    )
    for plan in (gaussian(), rademacher(), antithetic_plan(gaussian())):
        found, whole = draw(plan, mixed, 64), draw(plan, wide, 64)
        for s in mixed:
            rounded = np.asarray(jnp.asarray(whole[s.name], s.dtype), np.float64)
            np.testing.assert_array_equal(found[s.name], rounded)
    assert np.abs(draw(gaussian(), mixed)["a"] - draw(gaussian(), wide)["a"]).max() > 0


@pytest.mark.parametrize("name", ["gaussian", "shared_gaussian"])
def test_each_sample_is_exactly_normal(name):
    z = draw(PLANS[name], sites("a"))["a"]
    for member in range(PLANS[name].group):
        entry = z[:, member, 0, 0]  # independent over draws
        assert stats.kstest(entry, "norm").pvalue > 1e-4


@every_plan
def test_samples_examples_entries_and_nodes_are_uncorrelated(name):
    """All pairs of entries of one draw of two nodes of one shape [es-at-scale]."""
    noise = draw(PLANS[name], sites("a", "b"))
    x = np.concatenate([z.reshape(DRAWS, -1) for z in noise.values()], axis=1)
    products = x.T @ x / DRAWS
    spread = np.sqrt((x**2).T @ x**2 / DRAWS - products**2 + 1e-12)
    off_diagonal = ~np.eye(x.shape[1], dtype=bool)
    z = (products / spread * DRAWS**0.5)[off_diagonal]
    assert np.abs(z).max() < LIMIT
    assert 0.8 < z.std() < 1.2  # and they are as random as they should be


def test_shared_magnitudes_are_shared_and_their_signs_are_not():
    z = draw(PLANS["shared_gaussian"], sites("a"), draws=64)["a"]
    magnitudes = np.abs(z)
    assert np.array_equal(magnitudes, np.broadcast_to(magnitudes[:, :1], z.shape))
    assert len({tuple(np.sign(row).ravel()) for row in z[:4].reshape(32, -1)}) > 16


@every_plan
def test_draws_are_uncorrelated(name):
    z = draw(PLANS[name], sites("a"))["a"]
    assert np.abs(mean_z(z[1::2] * z[::2], 0.0)).max() < LIMIT


@every_plan
def test_antithetic_pairs_sum_to_zero_for_the_same_example(name):
    plan = antithetic_plan(PLANS[name])
    z = draw(plan, sites("a", "b"), draws=16)
    half = PLANS[name].group
    assert plan.group == 2 * half
    for noise in z.values():
        assert np.array_equal(noise[:, :half], -noise[:, half:])
    plain = draw(PLANS[name], sites("a", "b"), draws=16)
    assert all(np.array_equal(z[k][:, :half], plain[k]) for k in z)


def test_noise_of_a_node_depends_on_its_name_alone():
    """Not on the other nodes or their order."""
    together = draw(PLANS["gaussian"], sites("a", "b", "c"), draws=4)
    for names in (("c", "a"), ("a",)):
        alone = draw(PLANS["gaussian"], sites(*names), draws=4)
        assert all(np.array_equal(alone[n], together[n]) for n in names)


@pytest.mark.parametrize(
    "shape, batch_axis",
    [((5,), None), ((), None), ((3, 40), 0), ((7, 3, 5), 1), ((4, 33), 1), ((64,), 0)],
)
def test_packed_signs(shape, batch_axis):
    """Balanced and uncorrelated over all places of a word."""
    keys = jax.random.split(jax.random.key(1), 4096)
    signs = jax.jit(jax.vmap(lambda key: packed_signs(key, shape, batch_axis)))(keys)
    assert signs.shape == (4096, *shape) and signs.dtype == jnp.float32
    x = np.asarray(signs, np.float64).reshape(4096, -1)
    assert set(np.unique(x)) == {-1.0, 1.0}
    assert np.abs(x.mean(0)).max() * 64 < LIMIT
    correlation = x.T @ x / 4096 - np.eye(x.shape[1])
    assert np.abs(correlation).max() * 64 < LIMIT


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_tpu_unpacks_the_same_bits(count):
    words = jax.random.bits(jax.random.key(0), (3, 2, 5, count), jnp.uint32)
    assert np.array_equal(packing._selected(words), packing._top_bits(words))


# --------------------------------------------------------------------------- the loop


@pytest.mark.parametrize(
    "num_draws, chunk", [(1, 1), (7, 1), (7, 3), (7, 7), (64, 8), (64, 3), (9, 4)]
)
def test_the_loop_adds_every_draw_once_and_keeps_their_order(num_draws, chunk):
    def chunk_fn(indices):
        return (indices + 1).sum(), {"index": indices}

    layout = Layout(num_draws, chunk)
    total, stacked = sum_over_draws(chunk_fn, layout)
    assert int(total) == num_draws * (num_draws + 1) // 2
    assert stacked["index"].tolist() == list(range(num_draws))


OPTIONS = {
    "node_perturbation": (bpfree.node_perturbation, {}),
    "noisy": (bpfree.likelihood_ratio, {}),
    "leave_one_out": (bpfree.node_perturbation, {"baseline": "leave_one_out"}),
    "shared": (
        bpfree.likelihood_ratio,
        {"noise": "shared_gaussian", "antithetic": True, "pairing": "clean"},
    ),
    "orthogonal": (bpfree.likelihood_ratio, {"noise": "orthogonal"}),
}


@pytest.mark.parametrize("make, options", OPTIONS.values(), ids=OPTIONS)
def test_the_chunk_size_does_not_change_the_estimate(make, options):
    """Up to the order of float32 additions; 3 does not divide the draws."""
    params, batch = problems.mlp_params(), problems.mlp_batch()

    def estimate(chunk_size):
        tx = make(
            problems.mlp_loss,
            num_samples=64,
            sigma=0.1,
            chunk_size=chunk_size,
            **options,
        )
        return problems.estimates(tx, params, batch, repeats=1)

    whole = estimate(64)
    for chunk_size in (1, 3, 8) if "noise" not in options else (16,):
        assert_close(estimate(chunk_size), whole, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": 0}, "num_samples=0 must be a positive"),
        ({"num_samples": 3, "antithetic": True}, "antithetic samples come in pairs"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"baseline": "leave_one_out", "num_samples": 1}, "at least two draws"),
        (
            {"baseline": "leave_one_out", "num_samples": 2, "antithetic": True},
            "num_samples >= 4",
        ),
        ({"sigma": 0.0}, "sigma=0.0 must be a positive"),
        ({"sigma": -1.0}, "sigma=-1.0 must be a positive"),
        ({"sigma": float("nan")}, "sigma=nan must be a positive"),
        ({"baseline": "mean"}, "baseline='mean' is unknown.*leave_one_out"),
        ({"noise": "cauchy"}, "noise='cauchy' is unknown"),
    ],
)
@pytest.mark.parametrize("make", [bpfree.node_perturbation, bpfree.likelihood_ratio])
def test_wrong_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(problems.mlp_loss, **options)


def test_wrong_pairing():
    with pytest.raises(ValueError, match="pairing='both' is unknown"):
        bpfree.likelihood_ratio(problems.mlp_loss, pairing="both")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_adds_up_in_float32(dtype):
    """Many small terms: sums in half precision would depend on the chunk, and shrink."""

    def loss(params, batch):
        return (bpfree.node(batch @ params) ** 2).sum(1)

    keys = jax.random.split(jax.random.key(0))
    params = jax.random.normal(keys[0], (3, 2), dtype)
    batch = jax.random.normal(keys[1], (64, 3), dtype)

    def slope(chunk_size):
        options = {"num_samples": 2048, "sigma": 0.1, "chunk_size": chunk_size}
        tx = bpfree.likelihood_ratio(loss, noise="shared_gaussian", **options)
        step = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=batch)[0])
        found = step(params).astype(jnp.float64).ravel()
        wide = params.astype(jnp.float64), batch.astype(jnp.float64)
        truth = jax.grad(lambda p: loss(p, wide[1]).mean())(wide[0]).ravel()
        return found @ truth / (truth @ truth)

    assert abs(slope(8) - slope(256)) < 0.02
    assert abs(slope(8) - 1) < 0.05


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_kinds_serve_as_seeds(impl):
    """`vmap` over rbg keys draws other numbers than a loop; threefry takes over."""
    seed = jax.random.key(0, impl=impl)
    made = [
        bpfree.node_perturbation(
            problems.mlp_loss, num_samples=8, chunk_size=c, seed=seed
        )
        for c in (1, 8)
    ]
    params, batch = problems.mlp_params(), problems.mlp_batch()
    one, eight = (tx.update(None, tx.init(params), params, batch=batch)[0] for tx in made)
    assert_close(one, eight, rtol=1e-5, atol=1e-6)
