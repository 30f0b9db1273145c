"""Attacks against closed forms on a linear model; corruptions; planted mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from bpfree import robustness
from tests.statistics import assert_close

WEIGHTS = jnp.array([1.0, -2.0, 0.5, 0.0], jnp.float32)
X = jnp.array([[0.5, 0.5, 0.5, 0.5], [0.05, 0.98, 0.2, 0.3]], jnp.float32)
LABEL = jnp.array([1, 0])
EPSILON = 0.1


def linear(x, label):
    """Loss +- w . x: the worst change is +- epsilon sign(w), cut at the bounds."""
    return (2 * label - 1).astype(x.dtype) * (x @ WEIGHTS)


def worst(bounds=(0.0, 1.0)):
    sign = np.sign(np.asarray(WEIGHTS)) * np.array([[1], [-1]])
    return np.clip(np.asarray(X) + EPSILON * sign, *bounds)


ATTACKS = {
    "fgsm": robustness.fgsm,
    "pgd": lambda *a, **k: robustness.pgd(*a, key=jax.random.key(0), **k),
    "mi_fgsm": robustness.mi_fgsm,
    "random_search": lambda *a, **k: robustness.random_search(
        *a, key=jax.random.key(1), steps=60, **k
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 0.55)])
def test_the_worst_corner_of_a_linear_loss(name, bounds):
    x = jnp.clip(X, *bounds)
    found = jax.jit(lambda x: ATTACKS[name](linear, x, LABEL, EPSILON, bounds=bounds))(x)
    sign = np.sign(np.asarray(WEIGHTS)) * np.array([[1], [-1]])
    expected = np.clip(np.asarray(x) + EPSILON * sign, *bounds)
    matters = np.asarray(WEIGHTS) != 0
    assert_close(found[:, matters], expected[:, matters], rtol=0, atol=1e-6)
    assert np.all(np.abs(found - x) <= EPSILON + 1e-6)
    assert np.all((found >= bounds[0]) & (found <= bounds[1]))


def test_without_a_derivative_only_the_search_finds_anything():
    def steps(x, label):
        return linear(jnp.sign(x - 0.5) * jnp.abs(jnp.sign(x - 0.5)), label)

    clean = steps(X, LABEL)
    assert_close(robustness.fgsm(steps, X, LABEL, EPSILON), X, rtol=0)
    found = robustness.random_search(
        steps, X, LABEL, EPSILON, key=jax.random.key(0), steps=60
    )
    assert np.all(steps(found, LABEL) >= clean)
    assert steps(found, LABEL)[0] > clean[0]


def test_restarts_take_the_worst_end_of_each_example():
    def two_hills(x, label):
        """Steps of size 1e-3 do not leave the hill on which they start."""
        return jnp.where(x > 0.5, 2.0, 1.0)[:, 0] + 0 * x.sum(1)

    x = jnp.full((16, 1), 0.5, jnp.float32)
    ends = [
        robustness.pgd(
            two_hills, x, LABEL, 0.1, key=jax.random.key(3), restarts=n, step_size=1e-3
        )
        for n in (1, 8)
    ]
    once, often = (float((two_hills(e, LABEL) == 2).mean()) for e in ends)
    assert 0.1 < once < 0.9 and often > 0.9


def test_momentum_is_a_sum_of_slopes_of_length_one():
    centre = np.array([0.53, 0.46], np.float32)

    def hill(x, label):
        return -((x - centre[None]) ** 2).sum(1)

    x = jnp.array([[0.5, 0.52]], jnp.float32)
    found = robustness.mi_fgsm(hill, x, LABEL[:1], 0.1, steps=8, decay=0.9)
    y, momentum = np.asarray(x[0]), np.zeros(2)
    for _ in range(8):
        slope = -2 * (y - centre)
        momentum = 0.9 * momentum + slope / np.abs(slope).sum()
        y = np.clip(y + 0.1 / 8 * np.sign(momentum), x[0] - 0.1, x[0] + 0.1)
    assert_close(found[0], y, rtol=0, atol=1e-6)
    plain = robustness.mi_fgsm(hill, x, LABEL[:1], 0.1, steps=8, decay=0.0)
    assert np.abs(plain - found).max() > 0.01


IMAGES = jax.random.uniform(jax.random.key(4), (200, 6, 6, 1), jnp.float32)


@pytest.mark.parametrize("name", robustness.CORRUPTIONS)
def test_corruptions_grow_with_severity_and_stay_within_bounds(name):
    key = jax.random.key(5)
    found = [robustness.corrupted(name, key, IMAGES, s) for s in range(1, 6)]
    sizes = [float(jnp.abs(x - IMAGES).mean()) for x in found]
    assert 0 < sizes[0] and sizes == sorted(sizes)
    assert all(bool(jnp.all((x >= 0) & (x <= 1))) for x in found)


def test_what_the_corruptions_are():
    key, grey = jax.random.key(6), jnp.full((50, 10, 10, 1), 0.5, jnp.float32)
    noisy = robustness.gaussian(key, grey, 0.1)
    np.testing.assert_allclose(noisy.std(), 0.1, rtol=0.05)
    uniform = robustness.uniform(key, grey, 0.2)
    np.testing.assert_allclose(uniform.std(), 0.2 / 3**0.5, rtol=0.05)
    salted = robustness.salt_and_pepper(key, grey, 0.3)
    np.testing.assert_allclose((salted != grey).mean(), 0.3, rtol=0.1)
    dull = robustness.contrast(key, IMAGES, 0.75)
    assert_close(dull.std((1, 2)), IMAGES.std((1, 2)) / 4, rtol=1e-4)
    assert_close(robustness.brightness(key, grey, 0.2), grey + 0.2, rtol=1e-6)
    assert_close(robustness.blur(key, grey, 1.0), grey, rtol=1e-6)
    assert robustness.blur(key, IMAGES, 1.0).std() < 0.5 * IMAGES.std()


def test_mistakes():
    with pytest.raises(ValueError, match="corruption 'fog' of severity 3: choose one of"):
        robustness.corrupted("fog", jax.random.key(0), IMAGES, 3)
    with pytest.raises(ValueError, match="severity 0"):
        robustness.corrupted("blur", jax.random.key(0), IMAGES, 0)
    with pytest.raises(ValueError, match="blur needs images"):
        robustness.blur(jax.random.key(0), X, 1.0)


def test_accuracy():
    apply = lambda x: jnp.stack([0 * x[:, 0], x @ WEIGHTS], 1)  # noqa: E731
    assert robustness.accuracy(apply, X, jnp.array([0, 0])) == 1.0
    assert robustness.accuracy(apply, X, LABEL) == 0.5


def test_attacks_agree_with_foolbox():
    """`pip install foolbox` runs this. Its MI-FGSM does not scale gradients, as the paper
    does, so that is compared without momentum, where both are the basic iteration."""
    foolbox = pytest.importorskip("foolbox")
    keys = jax.random.split(jax.random.key(0), 4)
    first = jax.random.normal(keys[0], (12, 16))
    last = jax.random.normal(keys[1], (16, 3))
    x = jax.random.uniform(keys[2], (64, 12))
    label = jax.random.randint(keys[3], (64,), 0, 3)
    apply = jax.jit(lambda x: jnp.tanh(x @ first) @ last)
    model = foolbox.JAXModel(apply, bounds=(0, 1))

    def loss(x, label):
        return optax.softmax_cross_entropy_with_integer_labels(apply(x), label)

    def theirs(attack):
        with jax.numpy_dtype_promotion("standard"):
            return attack(model, x, label, epsilons=EPSILON)[1]

    attacks = foolbox.attacks
    fgsm = theirs(attacks.LinfFastGradientAttack())
    assert_close(robustness.fgsm(loss, x, label, EPSILON), fgsm, rtol=0, atol=1e-6)
    basic = theirs(attacks.MIFGSM(momentum=0.0, rel_stepsize=0.1, steps=10))
    found = robustness.mi_fgsm(loss, x, label, EPSILON, decay=0.0)
    assert_close(found, basic, rtol=0, atol=1e-6)
    pgd = theirs(attacks.LinfPGD(rel_stepsize=0.125, steps=20))
    ours = robustness.pgd(loss, x, label, EPSILON, key=jax.random.key(1))
    right = [robustness.accuracy(apply, made, label) for made in (x, ours, pgd)]
    assert right[0] - right[1] > 0.1
    assert abs(right[1] - right[2]) <= 2 / 64


@pytest.mark.parametrize("severity", [0.5, 1.5])
def test_blur_is_scipys(severity):
    sigmas, options = (0, severity, severity, 0), {"mode": "nearest", "radius": 3}
    theirs = ndimage.gaussian_filter(np.asarray(IMAGES), sigmas, **options)
    found = robustness.blur(jax.random.key(0), IMAGES, severity)
    assert_close(found, theirs, rtol=1e-5, atol=1e-6)


def test_corruptions_agree_with_foolbox():
    """Foolbox draws noise of a fixed length; in 144 dimensions ours has nearly one. It
    lowers contrast around the middle of the range, where this image has its mean."""
    foolbox = pytest.importorskip("foolbox")
    keys = jax.random.split(jax.random.key(0), 6)
    teacher = jax.random.normal(keys[0], (144, 3))
    x = jax.random.uniform(keys[1], (4000, 144))
    apply = jax.jit(lambda x: (x - 0.5) @ teacher)
    label = apply(x).argmax(1)
    model = foolbox.JAXModel(apply, bounds=(0, 1))

    def theirs(attack, x, length):
        with jax.numpy_dtype_promotion("standard"):
            return attack(model, x, label[: len(x)], epsilons=float(length))[1]

    attacks = foolbox.attacks
    pairs = {
        "gaussian": (attacks.L2AdditiveGaussianNoiseAttack(), 0.5 * 144**0.5),
        "uniform": (attacks.L2AdditiveUniformNoiseAttack(), 1.0 * 48**0.5),
    }
    for name, (attack, length) in pairs.items():
        noisy = robustness.corrupted(name, keys[2], x, 5), theirs(attack, x, length)
        ours, other = (robustness.accuracy(apply, y, label) for y in noisy)
        assert ours < 0.9 and abs(ours - other) < 4 * (2 * 0.2 / 4000) ** 0.5
    one = 0.5 + 0.5 * (x[:1] - x[0].mean())
    length = 0.75 * jnp.linalg.norm(one - 0.5)
    dull = theirs(attacks.L2ContrastReductionAttack(), one, length)
    assert_close(robustness.contrast(keys[3], one, 0.75), dull, rtol=0, atol=1e-6)
