"""Noise beyond signs and independent normals has the law it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bpfree
from bpfree.sampling import distributions
from tests import problems
from tests.statistics import LIMIT

DRAWS, SHAPE = 4096, (3, 5)
PLANS = {
    "laplace": (distributions.laplace(), stats.laplace(scale=0.5**0.5)),
    "student_t": (distributions.student_t(), stats.t(5, scale=0.6**0.5)),
    "sobol": (distributions.sobol(8), stats.norm()),
    "orthogonal": (distributions.orthogonal(8), stats.norm()),
}


def draw(plan, shape=SHAPE, batch_axis=0, draws=DRAWS, seed=0):
    """(draws, G, *shape), float64 NumPy."""
    keys = jax.random.split(jax.random.key(seed), draws)
    noise = jax.jit(jax.vmap(lambda key: plan.draw(key, shape, batch_axis)))(keys)
    assert noise.dtype == jnp.float32 and noise.shape == (draws, plan.group, *shape)
    return np.asarray(noise, np.float64)


@pytest.fixture(scope="module")
def noise():
    return {name: draw(plan) for name, (plan, _) in PLANS.items()}


def mean_z(values):
    return values.mean(0) / (values.std(0) / len(values) ** 0.5)


@pytest.mark.parametrize("name", PLANS)
def test_each_entry_follows_the_law(name, noise):
    law = PLANS[name][1]
    assert law.var() == pytest.approx(1)
    for member in range(PLANS[name][0].group):
        for entry in ((0, 0), (2, 4)):
            values = noise[name][:, member, *entry]
            assert stats.kstest(values, law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", PLANS)
def test_scores(name, noise):
    """E[s] = 0 and E[s eps] = 1, which is what makes an estimate of slope one."""
    score = np.asarray(PLANS[name][0].score(jnp.asarray(noise[name])))
    assert np.abs(mean_z(score)).max() < LIMIT
    assert np.abs(mean_z(score * noise[name] - 1)).max() < LIMIT


@pytest.mark.parametrize("name", PLANS)
def test_the_score_is_minus_the_derivative_of_the_log_density(name):
    score, law = PLANS[name][0].score, PLANS[name][1]
    z, h = np.asarray([-2.3, -0.4, 0.7, 1.9]), 1e-6
    truth = -(law.logpdf(z + h) - law.logpdf(z - h)) / (2 * h)
    np.testing.assert_allclose(score(jnp.asarray(z)), truth, rtol=1e-6)


@pytest.mark.parametrize("name", PLANS)
def test_examples_and_entries_are_uncorrelated(name, noise):
    """Within every sample; `draw` keys nodes and draws apart."""
    for member in range(PLANS[name][0].group):
        x = noise[name][:, member].reshape(DRAWS, -1)
        products = x[:, :, None] * x[:, None, :]
        z = mean_z(products)[~np.eye(x.shape[1], dtype=bool)]
        assert np.abs(z).max() < LIMIT


def test_directions_are_orthogonal_in_sets_of_the_width(noise):
    """Eight samples of five entries: a set of five and one of three."""
    gram = np.einsum("dkbi,dlbi->dbkl", noise["orthogonal"], noise["orthogonal"])
    off = np.abs(gram * ~np.eye(8, dtype=bool))
    assert off[..., :5, :5].max() < 1e-4 and off[..., 5:, 5:].max() < 1e-4
    assert off[..., :5, 5:].max() > 0.1


def test_points_of_sobol_fill_their_cells(noise):
    """In each dimension every eighth of the distribution has one point of eight."""
    cells = np.floor(stats.norm.cdf(noise["sobol"]) * 8)
    assert (np.sort(cells, axis=1) == np.arange(8)[None, :, None, None]).all()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shape, axis", [((4,), None), ((2, 3), None), ((3, 2, 4), 1)])
def test_any_shape_and_batch_axis(name, shape, axis):
    z = draw(PLANS[name][0], shape, axis, draws=512)
    assert abs(z.std() - 1) < 0.15


def test_too_many_dimensions_for_sobol():
    with pytest.raises(ValueError, match="21201 dimensions.*21202 entries"):
        distributions.sobol(2).draw(jax.random.key(0), (1, 21202), 0)


@pytest.mark.parametrize("name", ["sobol", "orthogonal"])
def test_an_odd_number_of_samples_cannot_be_coupled(name):
    with pytest.raises(ValueError, match="groups of a power of two; 7 independent"):
        bpfree.likelihood_ratio(problems.mlp_loss, num_samples=7, noise=name)
