"""How well one estimate points along the gradient: measured against theory.

With g_b the gradient of example b at a node of d entries, x_b the node's input and G the
batch gradient, R = B^2 |G|^2 / sum_b |g_b|^2 |x_b|^2 and K samples with the clean
baseline (or K pairs), the cosine at small sigma is

    logit noise   [1 + (d + 1) / (K R)]^(-1/2)
    weight noise  [1 + (D + 1) / K]^(-1/2), D parameters, noise shared by the batch

and with sign(eps) for eps, (pi / 2) (d + 1) stands in place of d + 1.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from tests.statistics import assert_close

B, SIGMA = 16, 1e-2


def logit_loss(params, batch):
    y = bpfree.node(batch["x"] @ params, "y")
    return jnp.sum((y - batch["t"]) ** 2, axis=1)


def weight_loss(params, batch):
    y = batch["x"] @ bpfree.node(params, "w", batch_axis=None)
    return jnp.sum((y - batch["t"]) ** 2, axis=1)


@functools.cache
def problem(d, inputs=32):
    keys = jax.random.split(jax.random.key(0), 3)
    params = jax.random.normal(keys[0], (inputs, d), jnp.float32) / inputs**0.5
    x = jax.random.normal(keys[1], (B, inputs), jnp.float32)
    t = jax.random.normal(keys[2], (B, d), jnp.float32)
    batch = {"x": x, "t": t}
    truth = jax.grad(lambda p: logit_loss(p, batch).mean())(params)
    g = 2 * (x @ params - t)
    coherence = (B * B * jnp.sum(truth**2)) / ((g**2).sum(1) @ (x**2).sum(1))
    return params, batch, truth, float(coherence)


@functools.cache
def cosine(d, num_samples, make=bpfree.likelihood_ratio, loss=logit_loss, **options):
    """Mean of 48 independent estimates."""
    params, batch, truth, _ = problem(d)
    options = {"pairing": "clean"} | options if make is not ALR else options
    tx = make(loss, num_samples=num_samples, sigma=SIGMA, **options)
    state = tx.init(params)

    @jax.jit
    def run(keys):
        def one(key):
            g = tx.estimator.estimate(key, params, batch, state).gradient
            return (g * truth).sum() / jnp.linalg.norm(g) / jnp.linalg.norm(truth)

        return jax.lax.map(one, keys, batch_size=8)

    return float(run(jax.random.split(jax.random.key(1), 48)).mean())


ALR = bpfree.approximated_likelihood_ratio


def law(noise_power):
    return (1 + noise_power) ** -0.5


@pytest.mark.parametrize("d, num_samples", [(16, 8), (16, 128), (128, 64)])
def test_cosine_of_logit_noise(d, num_samples):
    predicted = law((d + 1) / (num_samples * problem(d)[3]))
    assert cosine(d, num_samples) == pytest.approx(predicted, abs=0.03)


def test_pairs_count_half():
    predicted = law((16 + 1) / (64 * problem(16)[3]))
    found = cosine(16, 128, antithetic=True, baseline="none")
    assert found == pytest.approx(predicted, abs=0.03)


def test_cosine_of_weight_noise():
    predicted = law((16 * 32 + 1) / 64)
    assert cosine(16, 64, loss=weight_loss) == pytest.approx(predicted, abs=0.03)


def test_cosine_of_signs():
    predicted = law(np.pi / 2 * (16 + 1) / (32 * problem(16)[3]))
    assert cosine(16, 32, make=ALR) == pytest.approx(predicted, abs=0.03)


def test_fewer_bits_cost_more():
    """And all of them still point downhill."""
    real, noise = cosine(16, 32), cosine(16, 32, make=ALR)
    product = cosine(16, 32, make=ALR, encode="product")
    assert real > noise > product > 0.3
    assert cosine(16, 32, make=ALR, encode="loss") > 0.3


def test_order_of_the_baselines_at_small_sigma():
    """Clean beats pairs; without either, the loss itself drowns its change."""
    pairs = cosine(16, 32, antithetic=True, baseline="none")
    useless = [cosine(16, 32, baseline=b) for b in ("batch", "none")]
    assert cosine(16, 32) > pairs + 0.05
    assert max(map(abs, useless)) < pairs / 2


def test_points_of_sobol_help_only_few_entries():
    assert cosine(4, 32, noise="sobol") > cosine(4, 32) + 0.02
    assert cosine(128, 64, noise="sobol") > cosine(128, 64) - 0.02


def test_orthogonal_directions_help_where_samples_are_as_many_as_entries():
    assert cosine(128, 64, noise="orthogonal") > cosine(128, 64) + 0.05
    assert cosine(16, 8, noise="orthogonal") > cosine(16, 8) + 0.05


def test_averaging_first_is_the_sum_of_outer_products():
    """Clean pairing (one product at the end) and noisy (one a sample), same inputs."""
    params, batch, _, _ = problem(16)
    results = []
    for pairing in ("clean", "noisy"):
        tx = bpfree.likelihood_ratio(logit_loss, num_samples=24, pairing=pairing)
        update = jax.jit(lambda p, tx=tx: tx.update(None, tx.init(p), p, batch=batch)[0])
        results.append(update(params))
    assert_close(*results, rtol=1e-4, atol=1e-5)
