"""Decorrelating rules on fixed data: convergence, bounds, fixed points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from bpfree import decorrelation
from bpfree.decorrelation import direct, moments, rules


@functools.cache
def digits(live=True):
    """Raw pixels 0 .. 1, (1, n, d), far from centred."""
    x = load_digits().data / 16
    return jnp.asarray(x[:200, x.std(0) > 0.05] if live else x)[None]


@functools.cache
def smooth():
    """Inputs of full rank with a spectrum like an image's, (1, n, d)."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    x = rng.normal(size=(100, 12)) / np.sqrt(np.arange(1, 13.0)) @ basis.T
    return jnp.asarray(x)[None]


def off_diagonal(s):
    return jnp.where(jnp.eye(s.shape[-1], dtype=bool), 0, s)


def lambda_max(rows):
    return float(jnp.linalg.eigvalsh(off_diagonal(moments.second_moment(rows)[0]))[-1])


@functools.partial(jax.jit, static_argnums=2)
def energies(rows, rate, steps):
    """Off-diagonal energy before each step at a fixed rate without guard; and R."""

    def one(matrix, _):
        x = moments.product(rows, matrix.mT)
        energy = jnp.sum(off_diagonal(moments.second_moment(x)[0]) ** 2)
        bracket = rules.decorrelating(x, 1.0, 0.0)
        return rules.step(matrix, bracket, rate[None]), energy

    matrix, energy = jax.lax.scan(one, jnp.eye(rows.shape[2])[None], length=steps)
    return energy, matrix


@pytest.mark.parametrize("rows", [digits, smooth])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_energy_falls_at_every_step_within_the_bound(rows, share):
    rows = rows()
    energy, _ = energies(rows, jnp.asarray(share / lambda_max(rows)), 50)
    assert np.all(np.diff(energy) < 0)
    assert energy[-1] < 0.01 * energy[0]


@pytest.mark.parametrize("rows", [digits, smooth])
def test_beyond_the_bound_it_diverges(rows):
    rows = rows()
    energy, _ = energies(rows, jnp.asarray(2.5 / lambda_max(rows)), 50)
    assert not energy[12] < 1e6 * energy[0]


def test_pure_decorrelation_keeps_the_volume():
    rows = smooth()
    volumes = []
    for share, steps in ((0.5, 50), (0.25, 100)):
        _, matrix = energies(rows, jnp.asarray(share / lambda_max(rows)), steps)
        volumes.append(abs(float(jnp.linalg.slogdet(matrix[0])[1])))
    assert volumes[0] < 0.03 * rows.shape[2]
    assert volumes[1] < volumes[0]


def trained(rule, rows, steps):
    state = rule.init(rows.shape[0], rows.shape[2], rows.dtype)
    return jax.jit(
        lambda s: jax.lax.scan(lambda s, _: _move(rule, s, rows), s, length=steps)
    )(state)


def _move(rule, state, rows):
    state = rule.move(state, rows)
    return state, (state.loss, state.rate)


def covariance(matrix, rows):
    x = moments.product(rows, matrix.mT)
    return np.asarray(moments.second_moment(x)[0])


def test_the_variance_term_and_the_gain_whiten():
    rows = smooth()
    state, _ = trained(decorrelation.dbp(0.1), rows, 800)
    white = covariance(state.matrix, rows)
    assert np.linalg.cond(white) < 1.05
    np.testing.assert_allclose(white.trace() / len(white), 1, rtol=0.02)
    state, _ = trained(decorrelation.gain(), rows, 800)
    kept = covariance(state.matrix, rows)
    assert np.linalg.cond(kept) < 1.05


@pytest.mark.parametrize(
    ("rule", "weight"),
    [
        (decorrelation.copi(), 1),
        (decorrelation.dbp(0.1, normalized=True), 63 / 0.9),
        (decorrelation.gain(), 1),
        (decorrelation.dbp(0.01, rate=0.1), 1),  # over the bound of raw pixels
    ],
    ids=["copi", "normalized", "gain", "fixed"],
)
def test_a_thousand_steps_on_raw_pixels_with_dead_ones(rule, weight):
    """The automatic rate is safe; a given one that is not is lowered."""
    rows = digits(live=False)[:, :40]
    state, (losses, rates) = trained(rule, rows, 1000)
    assert np.isfinite(state.matrix).all()
    assert losses[-1] < losses[0] / 5
    assert float(rates[0][0]) <= 0.51 * weight / lambda_max(rows)


def test_low_rank_products_equal_the_explicit_ones():
    key = jax.random.key(1)
    few = jax.random.normal(key, (2, 5, 12))
    many = jax.random.normal(key, (2, 50, 12))
    m = jax.random.normal(key, (2, 12, 12))
    for rows in (few, many):
        explicit = moments.second_moment(rows) @ m
        np.testing.assert_allclose(moments.times(rows, m), explicit, rtol=1e-10)
        x = np.asarray(rows)
        squares = np.mean([_mean_squared_correlation(block) for block in x])
        assert float(moments.correlation(rows)) == pytest.approx(squares)


def _mean_squared_correlation(x):
    s = x.T @ x / len(x)
    c = s / np.sqrt(np.outer(s.diagonal(), s.diagonal()))
    return np.mean(c[~np.eye(len(c), dtype=bool)] ** 2)


def test_the_variance_term_multiplies_from_the_left():
    """diag(v - 1) R and R diag(v - 1) differ once R is not symmetric."""
    rows = smooth()
    v = moments.variances(rows)
    matrix = jnp.tril(jnp.ones((1, 12, 12)))
    moved = rules.step(matrix, rules.decorrelating(rows, 0.0, 1.0), jnp.ones((1,)))
    left = matrix - (v - 1)[..., None] * matrix
    right = matrix - matrix * (v - 1)[:, None]
    np.testing.assert_allclose(moved, left, rtol=1e-10)
    assert not np.allclose(moved, right)


def test_power_iteration():
    rows = smooth()
    s = moments.second_moment(rows)
    found = moments.largest_eigenvalue(
        lambda u: moments.times(rows, u[..., None])[..., 0], (1, 12), rows.dtype, 200
    )
    np.testing.assert_allclose(found[0], jnp.linalg.eigvalsh(s[0])[-1], rtol=1e-6)


# ------------------------------------------------------------------------ direct rules


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_whitening_by_the_root_of_the_moment(method):
    rows = smooth()
    rule = decorrelation.whiten(damping=1e-6, method=method)
    state = rule.move(rule.init(1, 12, rows.dtype), rows)
    np.testing.assert_allclose(covariance(state.matrix, rows), np.eye(12), atol=1e-3)


def test_foof_divides_by_the_damped_moment():
    rows, g = smooth(), jnp.ones((1, 3, 12))
    rule = decorrelation.foof(damping=0.5, decay=0.9)
    state = rule.move(rule.init(1, 12, rows.dtype), rows)
    state = rule.move(state, 2 * rows)
    moment = moments.second_moment(rows)[0]
    mean = (0.9 * 0.1 + 0.1 * 4) / (1 - 0.9**2) * moment
    damped = mean + 0.5 * jnp.trace(mean) / 12 * jnp.eye(12)
    expected = g[0] @ jnp.linalg.inv(damped)
    np.testing.assert_allclose(rule.gradient(state, g)[0], expected, rtol=1e-8)
    assert rule.update(state, g) is g


def test_no_inputs_no_conditioning():
    zeros = jnp.zeros((1, 4, 3))
    for make in (decorrelation.foof, decorrelation.whiten):
        state = make().move(make().init(1, 3, zeros.dtype), zeros)
        np.testing.assert_allclose(state.matrix[0], np.eye(3), atol=1e-12)
    assert float(direct.damped(jnp.zeros((1, 2, 2)), 0.1)[0, 0, 0]) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decorrelation.dbp(1.5), "kappa=1.5 must lie in 0 .. 1"),
        (lambda: decorrelation.copi(rate=0.0), "rate=0.0 must be positive"),
        (lambda: decorrelation.foof(damping=0.0), "damping=0.0 must be positive"),
        (lambda: decorrelation.whiten(decay=1.0), "decay=1.0 must lie in 0 .. 1"),
        (lambda: decorrelation.whiten(method="lu"), "'lu' is unknown.*eigh"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
