"""The estimators estimate the gradient that their contract names.

Small sigma against backprop, large sigma against the gradient of the smoothed loss, for
every baseline, pairing, kind of noise, with and without antithetic pairs.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

import bpfree
from bpfree.sampling.rules import per_example
from tests import problems, programs
from tests import statistics as gates

BASELINES = ("clean", "leave_one_out", "none")
PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
LINEAR = problems.linear_params()


NOISES = ("gaussian", "laplace", "student_t", "sobol", "orthogonal")
DENSITIES = {
    "gaussian": jax.scipy.stats.norm.pdf,
    "laplace": lambda z: jax.scipy.stats.laplace.pdf(z, scale=0.5**0.5),
    "student_t": lambda z: jax.scipy.stats.t.pdf(z, 5.0, scale=0.6**0.5),
}


def passes(estimates, truth, resolves, **options):
    """The gate accepts, and would have seen an error of five times `resolves`."""
    gate = gates.mean_gate(estimates, truth, **options)
    assert gate.passed, gate
    assert gate.error < resolves, gate


def factory(noise):
    if noise == "rademacher":
        return bpfree.node_perturbation
    return functools.partial(bpfree.likelihood_ratio, pairing="clean")


# ------------------------------------------------------------- aligned: the clean pairing

CENTRED = [
    (baseline, antithetic, noise)
    for baseline, antithetic, noise in itertools.product(
        BASELINES, (False, True), ("rademacher", "gaussian", "shared_gaussian")
    )
    if baseline != "none" or antithetic
]


@pytest.mark.parametrize("baseline, antithetic, noise", CENTRED)
def test_clean_pairing_is_the_gradient_at_small_sigma(baseline, antithetic, noise):
    tx = factory(noise)(
        problems.mlp_loss,
        num_samples=32,
        sigma=1e-3,
        baseline=baseline,
        antithetic=antithetic,
        noise=noise,
    )
    estimates = problems.estimates(tx, PARAMS, BATCH, repeats=2048)
    truth = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
    passes(estimates, truth, resolves=0.02)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "shared_gaussian"])
def test_clean_pairing_without_a_baseline(noise):
    """Useless at small sigma; exact at any sigma for a quadratic loss of one node."""
    tx = factory(noise)(
        problems.linear_loss,
        num_samples=32,
        sigma=1.0,
        baseline="none",
        noise=noise,
    )
    estimates = problems.estimates(tx, LINEAR, BATCH, repeats=2048)
    passes(estimates, problems.gradient(problems.linear_loss, LINEAR, BATCH), 0.02)


def test_gaussian_node_perturbation_is_the_likelihood_ratio():
    options = dict(num_samples=8, sigma=0.1, noise="gaussian")
    a, b = (
        problems.estimates(make(problems.mlp_loss, **options), PARAMS, BATCH, 2)
        for make in (bpfree.node_perturbation, factory("gaussian"))
    )
    gates.assert_close(a, b, rtol=0.0)


@pytest.mark.parametrize("sigma, num_samples", [(1e-3, 1), (1e-3, 8), (1e-2, 8)])
def test_slope_is_one_for_every_sigma_and_count(sigma, num_samples):
    """[torchopt] multiplied by sigma, or divided twice: the slope was sigma^2."""
    tx = bpfree.node_perturbation(problems.mlp_loss, num_samples=num_samples, sigma=sigma)
    estimates = problems.estimates(tx, PARAMS, BATCH, repeats=4096 // num_samples)
    truth = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
    passes(estimates, truth, resolves=0.02)


def test_bias_of_the_clean_pairing_is_of_second_order():
    """Common random numbers: with the same key, what sigma changes is mostly bias."""
    sigmas = jnp.asarray([1e-4, 0.02, 0.04, 0.08])
    tx = bpfree.node_perturbation(
        problems.mlp_loss,
        num_samples=64,
        sigma=lambda step: sigmas[step],
        antithetic=True,
    )
    state, keys = tx.init(PARAMS), jax.random.split(jax.random.key(0), 64)

    def mean_estimate(count):
        at = state._replace(count=count)
        one = lambda key: tx.estimator.estimate(key, PARAMS, BATCH, at).gradient  # noqa: E731
        return jax.tree.map(lambda g: g.mean(0), jax.vmap(one)(keys))

    means = gates.flat(jax.jit(jax.vmap(mean_estimate))(jnp.arange(4)), repeats=True)
    errors = ((means[1:] - means[:1]) ** 2).sum(1) ** 0.5
    assert 1.9 < gates.slope_in_log(sigmas[1:], errors) < 2.1  # 2 + O(sigma^2)


# ------------------------------------------------- smoothed: the noisy pairing, any sigma


def pathwise(loss_fn, params, batch, sigma, repeats, samples=64, seed=11):
    """Independent estimates of grad J_sigma by differentiating through the noise."""
    shapes = {k: v.shape for k, v in bpfree.record(loss_fn)(params, batch)[1].items()}
    injected = bpfree.inject(loss_fn)

    def loss(params, key):
        keys = jax.random.split(key, len(shapes))
        deltas = {
            name: sigma * jax.random.normal(k, shape, jnp.float64)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return injected(params, batch, deltas)[0].mean()

    def one(key):
        keys = jax.random.split(key, samples)
        return jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, keys).mean())(params)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), repeats))


SIGMA = 0.4


@pytest.fixture(scope="module")
def smoothed():
    return pathwise(problems.mlp_loss, PARAMS, BATCH, SIGMA, repeats=1024)


@pytest.mark.parametrize("noise", ["gaussian", "shared_gaussian"])
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("baseline", [*BASELINES, "batch"])
def test_noisy_pairing_is_the_smoothed_gradient(baseline, antithetic, noise, smoothed):
    tx = bpfree.likelihood_ratio(
        problems.mlp_loss,
        num_samples=32,
        sigma=SIGMA,
        baseline=baseline,
        antithetic=antithetic,
        noise=noise,
    )
    estimates = problems.estimates(tx, PARAMS, BATCH, repeats=1024)
    passes(estimates, smoothed, resolves=0.02, truth_repeats=True)


def test_noisy_pairing_of_a_recurrent_net():
    """Every step is paired with its own noisy input."""
    loss, batch = programs.recurrent, programs.SEQUENCES
    tx = bpfree.likelihood_ratio(
        lambda params, batch: loss(params, batch), num_samples=64, sigma=SIGMA
    )
    estimates = problems.estimates(tx, PARAMS, batch, repeats=2048)
    smoothed = pathwise(lambda p, b: loss(p, b), PARAMS, batch, SIGMA, repeats=1024)
    passes(estimates, smoothed, resolves=0.02, truth_repeats=True)


def test_the_smoothed_gradient_is_another_one(smoothed):
    """So the test above tells the two contracts apart."""
    clean = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
    assert not gates.mean_gate(smoothed, clean).passed


@pytest.mark.parametrize("noise", NOISES)
def test_closed_form_of_a_linear_layer(noise):
    """Quadratic loss of one node: grad J_sigma is the clean gradient at any sigma."""
    tx = bpfree.likelihood_ratio(
        problems.linear_loss, num_samples=32, sigma=2.0, noise=noise
    )
    estimates = problems.estimates(tx, LINEAR, BATCH, repeats=2048)
    passes(estimates, problems.gradient(problems.linear_loss, LINEAR, BATCH), 0.02)


def step_loss(params, batch):
    """A threshold unit: its loss is 3 when the unit fires, else 1."""
    u = bpfree.node(batch["x"] @ params["w"], "u")
    return jnp.where(u > 0, 3.0, 1.0).astype(u.dtype)


@pytest.mark.parametrize("noise, density", DENSITIES.items(), ids=DENSITIES)
def test_closed_form_of_a_threshold_unit(noise, density):
    """grad = loss jump * density(w.x / sigma) / sigma * x; autodiff gives 0."""
    params = {"w": jnp.asarray([0.3, -0.2, 0.5])}
    gap = BATCH["x"] @ params["w"] / SIGMA
    truth = {"w": (2.0 * density(gap) / SIGMA) @ BATCH["x"] / gap.size}
    tx = bpfree.likelihood_ratio(step_loss, num_samples=64, sigma=SIGMA, noise=noise)
    passes(problems.estimates(tx, params, BATCH, repeats=2048), truth, resolves=0.02)
    assert not problems.gradient(step_loss, params, BATCH)["w"].any()


def net_of_thresholds(params, batch):
    h = bpfree.node(batch["x"] @ params["w1"] + params["b1"][None], "h")
    y = bpfree.node(jnp.sign(h) @ params["w2"] + params["b2"][None], "y")
    return jnp.sum((y - batch["t"]) ** 2, axis=1)


def smoothed_net_of_thresholds(params, batch):
    """The same, exactly: a sum over the patterns in which the hidden units fire."""
    h = batch["x"] @ params["w1"] + params["b1"][None]
    loss = 0.0
    for pattern in itertools.product((-1.0, 1.0), repeat=3):
        signs = jnp.asarray(pattern)[None]
        probability = jax.scipy.stats.norm.cdf(signs * h / SIGMA).prod(1)
        error = signs @ params["w2"] + params["b2"][None] - batch["t"]
        loss += probability * jnp.sum(error**2, axis=1)
    return loss + 3 * SIGMA**2


def test_closed_form_of_a_net_of_thresholds():
    params = {k: v for k, v in PARAMS.items() if k != "scale"}
    tx = bpfree.likelihood_ratio(net_of_thresholds, num_samples=32, sigma=SIGMA)
    estimates = problems.estimates(tx, params, BATCH, repeats=1024)
    truth = problems.gradient(smoothed_net_of_thresholds, params, BATCH)
    passes(estimates, truth, resolves=0.02)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"sigma": None}, "got None"),
        ({"credit": "causal"}, "credit='causal'"),
        ({"num_samples": 32.0}, "num_samples=32.0"),
        ({"sigma_optimizer": 1e-3}, "sigma_optimizer=0.001"),
        ({"sigma_optimizer": optax.sgd(1e-3), "sigma": lambda step: 0.1}, "at step 0"),
    ],
)
def test_what_a_newcomer_may_write_is_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        bpfree.likelihood_ratio(problems.mlp_loss, **kwargs)


def test_rules_that_do_not_fit_are_told():
    params, batch = problems.mlp_params(), problems.mlp_batch()
    for kwargs, message in (
        ({"credit": bpfree.causal}, r"bpfree.causal\(\)"),
        ({"credit": per_example, "baseline": "batch"}, "independent"),
    ):
        tx = bpfree.node_perturbation(problems.mlp_loss, **kwargs)
        with pytest.raises(ValueError, match=message):
            tx.update(None, tx.init(params), params, batch=batch)
