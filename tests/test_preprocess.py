"""Preprocessing does to the training inputs what it states, and leaks nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.data import digits, preprocess

KINDS = ("centre", "standardise", "zca")


@pytest.fixture(scope="module")
def inputs():
    """2000 correlated inputs of shape (3, 2), with one constant feature."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 6)) @ rng.normal(size=(6, 6)) + 3
    x[:, 4] = 0.5
    return x.astype(np.float32).reshape(-1, 3, 2)


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_is_zero_and_shape_kept(inputs, kind):
    out = preprocess.apply(preprocess.fit(inputs, kind), inputs)
    assert out.shape == inputs.shape and out.dtype == np.float32
    np.testing.assert_allclose(flat(out).mean(0), 0, atol=1e-5)


def test_standardise_gives_the_stated_variance(inputs):
    out = preprocess.apply(preprocess.fit(inputs, "standardise", 0.01), inputs)
    variance = flat(inputs).var(0)
    np.testing.assert_allclose(flat(out).var(0), variance / (variance + 0.01), atol=1e-5)
    assert flat(out).var(0)[4] == 0


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_zca_gives_the_stated_covariance(inputs, epsilon):
    out = preprocess.apply(preprocess.fit(inputs, "zca", epsilon), inputs)
    before, after = (np.cov(flat(x).T, bias=True) for x in (inputs, out))
    expected = before @ np.linalg.inv(before + epsilon * np.eye(6))
    np.testing.assert_allclose(after, expected, atol=2e-4)


def test_zca_whitens_where_there_is_variance(inputs):
    varied = np.delete(flat(inputs), 4, axis=1).astype(np.float32)
    out = preprocess.apply(preprocess.fit(varied, "zca", 1e-5), varied)
    np.testing.assert_allclose(np.cov(flat(out).T, bias=True), np.eye(5), atol=2e-3)


def test_zca_is_the_rotation_nearest_to_the_inputs(inputs):
    matrix = preprocess.fit(inputs, "zca").matrix
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix.astype(np.float64)).min() > 0


def test_covariance_does_not_depend_on_the_pieces():
    x = np.random.default_rng(1).normal(size=(9000, 3)).astype(np.float32)
    found = preprocess._covariance(x, x.mean(0, dtype=np.float64)[None])
    np.testing.assert_allclose(
        found, np.cov(x.T.astype(np.float64), bias=True), atol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_on_the_training_part_only(kind):
    raw, data = digits.load(), digits.load(preprocess=kind)
    affine = preprocess.fit(raw.train["x"], kind)
    for part in ("train", "validation", "test"):
        before, after = getattr(raw, part), getattr(data, part)
        np.testing.assert_array_equal(after["x"], preprocess.apply(affine, before["x"]))
        np.testing.assert_array_equal(after["label"], before["label"])
    assert data.source["preprocess"] == kind
    assert ("epsilon" in data.source) == (kind != "centre")
    assert "preprocess" not in raw.source


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_comes_before_preprocessing(kind):
    raw = digits.load(shift=0.5)
    data = digits.load(shift=0.5, preprocess=kind)
    np.testing.assert_array_equal(data.train["x"], raw.train["x"])
    batch = {k: jnp.asarray(v[:5]) for k, v in raw.train.items()}
    key = jax.random.key(0)
    augmented = np.asarray(raw.augment(key, batch)["x"])
    expected = preprocess.apply(preprocess.fit(raw.train["x"], kind), augmented)
    found = jax.jit(data.augment)(key, batch)
    assert found["x"].dtype == jnp.float32
    np.testing.assert_allclose(found["x"], expected, atol=1e-4)
