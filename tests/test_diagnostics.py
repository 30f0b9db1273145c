"""The instrument is itself measured: against closed forms and planted faults."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import bpfree
from bpfree import diagnostics
from bpfree.estimators.base import transformation
from bpfree.estimators.estimate import Estimate, Estimator
from tests import problems

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)


def made_up(scale=1.0, spread=0.0, bias=0.0):
    """scale * g + bias * (a fixed direction) + spread * normal noise in every entry."""

    def estimate(key, params, batch, state, wanted=None):
        leaves, tree = jax.tree.flatten(TRUTH)
        keys = jax.random.split(key, len(leaves))
        noisy = [
            scale * g
            + bias * jnp.ones_like(g)
            + spread * jax.random.normal(k, g.shape, g.dtype)
            for g, k in zip(leaves, keys, strict=True)
        ]
        return Estimate(
            jax.tree.unflatten(tree, noisy), jnp.float32(0), None, jnp.int32(-1)
        )

    return transformation(Estimator(lambda params: (), estimate), problems.mlp_loss, 0)


def measured(estimator, repeats=256, **kwargs):
    return diagnostics.measure(estimator, PARAMS, BATCH, repeats=repeats, **kwargs)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_backprop_is_perfect():
    report = measured(bpfree.backprop(problems.mlp_loss), repeats=4)
    assert set(report.groups) == {"h", "y", "(loss)", "(all)"}
    for alignment in report.groups.values():
        assert alignment.cosine == pytest.approx(1, abs=1e-5)
        assert alignment.slope == pytest.approx(1, abs=1e-5)
        assert alignment.variance < 1e-5 and alignment.bias < 2e-3
        assert alignment.estimates_for(0.99) < 1e-2
    norm = np.linalg.norm(flat({k: TRUTH[k] for k in ("w1", "b1")}))
    assert report.groups["h"].norm == pytest.approx(norm, rel=1e-5)


def test_scale_spread_and_bias_are_told_apart():
    g = flat(TRUTH)
    ones = np.ones_like(g)
    report = measured(made_up(scale=2.0, spread=0.5, bias=0.3), repeats=1024).overall
    slope = 2.0 + 0.3 * (g @ ones) / (g @ g)
    assert abs(report.slope - slope) < 5 * report.slope_error < 0.2
    assert report.variance == pytest.approx(0.25 * g.size / (g @ g), rel=0.15)
    assert report.bias == pytest.approx(truth_of(0.3), rel=0.1)
    assert abs(report.bias - truth_of(0.3)) < 5 * report.bias_error < 0.5 * report.bias
    unbiased = measured(made_up(scale=2.0, spread=0.5), repeats=1024).overall
    assert unbiased.bias == 0 and unbiased.bias_error < 0.3 * report.bias


def truth_of(bias):
    """Length of the constant vector `bias`, without its part along g, over |g|."""
    g = flat(TRUTH)
    ones = np.ones_like(g)
    off_axis = ones - g * (g @ ones) / (g @ g)
    return bias * np.linalg.norm(off_axis) / np.linalg.norm(g)


@pytest.mark.parametrize("bias, biased", [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("repeats", [4, 19])
def test_the_bias_is_as_uncertain_as_its_standard_error_says(bias, biased, repeats):
    tx = made_up(spread=0.5, bias=bias)
    meter = diagnostics.make_meter(tx, PARAMS, BATCH, repeats=repeats)
    found = [
        meter(PARAMS, BATCH, seed=seed, state=tx.init(PARAMS)).overall
        for seed in range(100)
    ]
    squared, errors = np.array([a[5:7] for a in found]).T
    deviations = squared - truth_of(bias) ** 2
    spread = squared.std(ddof=1)
    assert abs(deviations.mean()) < 4 * spread / 10
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.5)
    assert np.mean([a.is_biased == biased for a in found]) >= 0.95
    assert found[0].is_biased == biased
    words = found[0].bias_in_words()
    if biased:
        assert words == f"{found[0].bias:.2g} +- {found[0].bias_error:.1g}"
    else:
        assert words.startswith("not distinguishable from 0 (below ")
        assert math.isfinite(found[0].estimates_for(0.9))


def test_two_estimates_say_nothing_of_the_bias():
    report = measured(bpfree.node_perturbation(problems.mlp_loss), repeats=2)
    assert report.overall.bias_in_words() == (
        "not distinguishable from 0 (takes 4 estimates)"
    )
    assert "not distinguishable from 0" in str(report)


def test_any_number_of_estimates_gives_the_variance():
    report = measured(made_up(spread=0.5), repeats=17).overall
    g = flat(TRUTH)
    assert report.variance == pytest.approx(0.25 * g.size / (g @ g), rel=0.3)


def test_estimates_for_a_cosine_are_as_many_as_are_needed():
    report = measured(made_up(spread=2.0), repeats=1024).overall
    needed = report.estimates_for(0.9)
    averaged = measured(made_up(spread=2.0 / math.sqrt(needed)), repeats=1024).overall
    assert averaged.cosine == pytest.approx(0.9, abs=0.03)
    assert report.cosine_of_mean(needed) == pytest.approx(0.9)
    assert measured(made_up(scale=-1.0)).overall.estimates_for(0.9) == math.inf
    biased = measured(made_up(bias=3.0)).overall
    assert biased.estimates_for(0.99) == math.inf and biased.cosine < 0.9


def test_more_samples_align_better_and_the_forecast_holds():
    few, many = (
        measured(bpfree.node_perturbation(problems.mlp_loss, num_samples=k)).overall
        for k in (2, 16)
    )
    assert few.cosine < many.cosine
    assert few.estimates_for(0.9) / many.estimates_for(0.9) == pytest.approx(8, rel=0.35)


def test_a_learned_state_is_measured_as_it_stands():
    tx = bpfree.learned_feedback(
        problems.mlp_loss, example_batch=BATCH, fit=problems.adam(0.1)
    )
    state = tx.init(PARAMS)
    learned = state._replace(inner=state.inner._replace(weights=PARAMS))
    assert measured(tx, repeats=2).groups["h"].cosine < 0.99
    assert measured(tx, repeats=2, state=learned).groups["h"].cosine == pytest.approx(
        1, abs=1e-5
    )


def test_losses_with_a_key_or_without_nodes():
    def dropped(params, batch, key):
        kept = jax.random.bernoulli(key, 0.5, batch["x"].shape).astype(jnp.float64)
        return problems.mlp_loss(params, {**batch, "x": kept * batch["x"]})

    estimator = bpfree.backprop(dropped)
    report = measured(estimator, repeats=16)
    assert report.overall.slope == pytest.approx(1, abs=1e-5)
    assert 0.01 < report.overall.variance

    def plain(params, batch):
        return jnp.sum((batch["x"] @ params["w1"]) ** 2, axis=1)

    report = diagnostics.measure(
        bpfree.backprop(plain), {"w1": PARAMS["w1"]}, BATCH, repeats=2
    )
    assert set(report.groups) == {"w1", "(all)"}


def test_another_truth_may_be_given():
    twice = jax.tree.map(lambda g: 2 * g, TRUTH)
    report = measured(bpfree.backprop(problems.mlp_loss), repeats=2, truth=twice)
    assert report.overall.slope == pytest.approx(0.5, abs=1e-5)


def test_the_table_names_every_group():
    report = measured(bpfree.node_perturbation(problems.mlp_loss), repeats=4)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(report.groups)
    assert "estimates" in lines[-1] and "inferences" in lines[-1]


def test_bad_arguments_are_told():
    tx = bpfree.backprop(problems.mlp_loss)
    with pytest.raises(ValueError, match="at least 2"):
        measured(tx, repeats=1)
    with pytest.raises(ValueError, match="not a chain"):
        measured(problems.adam(0.1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        measured(tx, repeats=2).overall.estimates_for(1.0)


# -------------------------------------------------------------------------------- cost


def test_products_are_counted_through_loops_and_without_dead_code():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 5))

    def looped(a, b):
        unused = a @ b @ b.T
        del unused
        return jax.lax.scan(lambda c, _: (c, c @ b), a, length=7)[1]

    assert diagnostics.products(jnp.dot, a, b) == 2 * 2 * 3 * 5
    assert diagnostics.products(looped, a, b) == 7 * 2 * 2 * 3 * 5
    assert (
        diagnostics.products(jax.jit(jax.vmap(jnp.dot)), a, jnp.ones((2, 3))) == 2 * 2 * 3
    )


def test_convolutions_are_counted_as_xla_counts_them():
    conv = nn.Conv(6, (3, 3), strides=2, feature_group_count=2, padding="VALID")
    x = jnp.ones((2, 9, 9, 4), jnp.float32)
    params = conv.init(jax.random.key(0), x)
    assert diagnostics.products(conv.apply, params, x) == 2 * (2 * 4 * 4 * 6) * (9 * 2)


def test_cost_of_an_update_follows_from_its_definition():
    """K suffixes, a clean pass, a pull: for two layers of one width, K/2 + 1 + 1."""
    for samples in (4, 32):
        tx = bpfree.node_perturbation(
            problems.mlp_loss, num_samples=samples, chunk_size=4
        )
        found = diagnostics.cost(tx, PARAMS, BATCH)
        credit = samples * 2 / (2 * 3)  # the signals are products too: small, here not
        assert found == pytest.approx(samples / 2 + 2 + credit, rel=0.35)
    assert diagnostics.cost(
        bpfree.backprop(problems.mlp_loss), PARAMS, BATCH
    ) == pytest.approx(2.5)


def test_unknown_loops_have_no_cost():
    def loop(a):
        return jax.lax.while_loop(lambda a: a.sum() > 0, lambda a: a @ a, a)

    assert math.isnan(diagnostics.products(loop, jnp.ones((2, 2))))


def test_a_loop_in_either_branch_is_unknown():
    def loop(a):
        return jax.lax.while_loop(lambda a: a.sum() > 0, lambda a: a @ a, a)

    for branches in ([jnp.negative, loop], [loop, jnp.negative]):
        made = lambda i, a, b=branches: jax.lax.switch(i, b, a)  # noqa: E731
        assert math.isnan(diagnostics.products(made, 0, jnp.ones((2, 2))))


def test_losses_by_step_and_marks_for_a_filter_are_measured():
    def by_step(params, batch):
        h = bpfree.node(batch["x"] @ params["w1"], "h")
        act = bpfree.node(jnp.tanh(h), "act")  # a block without parameters
        return bpfree.node(act @ params["w2"], "y") ** 2

    params = {k: PARAMS[k] for k in ("w1", "w2")}
    tx = bpfree.node_perturbation(by_step, nodes=["h", "y"], credit=bpfree.causal(axis=1))
    report = diagnostics.measure(tx, params, BATCH, repeats=4, seed=np.int64(1))
    assert set(report.groups) == {"w1", "w2", "(all)"} and report.overall.cosine > 0.1
