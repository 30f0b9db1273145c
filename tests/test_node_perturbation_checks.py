"""The family on a net of four layers and digits, in float64: angles, laws, precision.

MLP 64-128-128-128-10, leaky ReLU, 256 digits. What holds exactly is tested on small nets
in test_gradients, test_layerwise and test_normalized.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import bpfree
from bpfree.estimators import normalized
from bpfree.estimators.derivative import linearized
from bpfree.program import passes
from bpfree.program.trace import trace
from tests import problems

WIDTHS = (64, 128, 128, 128, 10)
LAYERS = range(len(WIDTHS) - 1)
SIGMA = 1e-4
ESTIMATORS = {
    "np": functools.partial(bpfree.node_perturbation, noise="gaussian"),
    "inp": bpfree.iterative_node_perturbation,
    "anp": bpfree.activity_node_perturbation,
}


def network(params, x, product=jnp.matmul):
    for i in LAYERS:
        y = bpfree.node(product(x, params[f"w{i}"]) + params[f"b{i}"][None], f"layer{i}")
        x = jax.nn.leaky_relu(y, jnp.asarray(0.2, y.dtype))
    return y


def loss_fn(params, batch, product=jnp.matmul):
    logits = network(params, batch["x"], product)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


@functools.cache
def digits(dtype=jnp.float64):
    x, label = load_digits(return_X_y=True)
    return {"x": jnp.asarray(x / 16, dtype), "label": jnp.asarray(label, jnp.int32)}


@functools.cache
def initial(dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) - 1)
    params = {}
    for i, key in enumerate(keys):
        shape = WIDTHS[i : i + 2]
        scale = jnp.asarray((2 / shape[0]) ** 0.5, dtype)
        params[f"w{i}"] = scale * jax.random.normal(key, shape, dtype)
        params[f"b{i}"] = jnp.zeros(shape[1:], dtype)
    return params


@functools.cache
def after_backprop():
    """Five epochs of Adam."""
    data, chain = digits(), problems.adam(1e-3)

    @jax.jit
    def run(params):
        def step(carry, key):
            params, state = carry
            rows = jax.random.choice(key, len(data["label"]), (256,), replace=False)
            batch = jax.tree.map(lambda a: a[rows], data)
            gradient = jax.grad(lambda p: loss_fn(p, batch).mean())(params)
            updates, state = chain.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), 5 * (len(data["label"]) // 256))
        return jax.lax.scan(step, (params, chain.init(params)), keys)[0][0]

    return run(initial())


def batch_of(size=256, dtype=jnp.float64):
    return jax.tree.map(lambda a: a[:size], digits(dtype))


@functools.cache
def runner(name, repeats, num_samples):
    """`params -> repeats estimates`, one after the other."""
    tx = ESTIMATORS[name](loss_fn, sigma=SIGMA, num_samples=num_samples)
    keys = jax.random.split(jax.random.key(2), repeats)

    @jax.jit
    def run(params, batch):
        state = tx.init(params)
        one = lambda key: tx.estimator.estimate(key, params, batch, state).gradient  # noqa: E731
        return jax.lax.map(one, keys)

    return lambda params: run(params, batch_of())


def rows(tree, names=None):
    """(repeats, values) of the leaves named."""
    leaves = [tree[name] for name in names or sorted(tree)]
    return jnp.concatenate([a.reshape(len(a), -1) for a in leaves], axis=1)


def cosines(found, truth, names=None):
    a, b = rows(found, names), rows(jax.tree.map(lambda t: t[None], truth), names)
    return np.asarray((a @ b[0]) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b))


def degrees(cosine):
    return float(np.degrees(np.arccos(cosine)))


def truth_at(params):
    return problems.gradient(loss_fn, params, batch_of())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["np", "inp"])
def test_the_mean_of_2048_draws_is_the_gradient(name):
    """A1: cosine and scale of every layer."""
    truth = truth_at(initial())
    found = runner(name, 1, 2048)(initial())
    for i in LAYERS:
        a, b = found[f"w{i}"].ravel(), truth[f"w{i}"].ravel()
        assert cosines(found, truth, [f"w{i}"])[0] > 0.97
        assert 0.9 < float(a @ b / (b @ b)) < 1.1


@pytest.mark.slow
def test_activity_based_of_one_example_is_covariance_times_gradient(monkeypatch):
    """A2: 40,000 draws, every layer, the Jacobians by autodiff."""
    monkeypatch.setattr(
        normalized,
        "weigh",
        lambda losses, moved, nodes, scale: {s.name: losses / SIGMA**2 for s in nodes},
    )
    params, batch = initial(), batch_of(1)
    tx = bpfree.activity_node_perturbation(
        loss_fn, sigma=SIGMA, num_samples=40_000, chunk_size=500
    )
    found = jax.jit(lambda: tx.update(None, tx.init(params), params, batch=batch)[0])()
    _, values = bpfree.inject(loss_fn)(params, batch, {})
    zeros = jax.tree.map(jnp.zeros_like, values)
    run = lambda deltas: bpfree.inject(loss_fn)(params, batch, deltas)  # noqa: E731
    g = jax.grad(lambda deltas: run(deltas)[0].mean())(zeros)
    jacobians = jax.jit(jax.jacobian(lambda deltas: run(deltas)[1]))(zeros)
    for i in LAYERS:
        own = g[f"layer{i}"][0]
        law = own
        for k in range(i):
            jacobian = jacobians[f"layer{i}"][f"layer{k}"][0, :, 0]
            law = law + jacobian @ (jacobian.T @ own)
        signal = found[f"b{i}"]  # of one example, the gradient of the bias
        norms = jnp.linalg.norm(signal), jnp.linalg.norm(law)
        assert float(signal @ law / norms[0] / norms[1]) > 0.99
        assert 0.95 < float(norms[0] / norms[1]) < 1.05


@pytest.mark.slow
@pytest.mark.parametrize("at", [initial, after_backprop])
def test_the_angles_of_single_draws_are_in_order(at):
    """A3: iterative and activity-based are nearer to the gradient than NP."""
    params = at()
    truth = truth_at(params)
    angle = {
        name: degrees(cosines(runner(name, 50, 1)(params), truth).mean())
        for name in ESTIMATORS
    }
    print(at.__name__, angle)
    assert angle["inp"] < angle["np"] - 3
    assert angle["anp"] < angle["np"] - 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_angle_falls_with_the_draws(name):
    """A9: K = 1, 4, 16, 64."""
    truth = truth_at(initial())
    angles = [
        degrees(cosines(runner(name, 10, count)(initial()), truth).mean())
        for count in (1, 4, 16, 64)
    ]
    assert all(more < less - 3 for less, more in zip(angles, angles[1:], strict=False))


def in_bfloat16(x, w):
    low = jnp.bfloat16
    return jnp.matmul(x.astype(low), w.astype(low), preferred_element_type=jnp.float32)


def correlation_with_the_derivative(product):
    """Of loss differences at sigma 1e-3 with their first order, example by example."""
    params, batch = initial(jnp.float32), batch_of(dtype=jnp.float32)
    loss = functools.partial(loss_fn, product=product)
    exact = trace(loss_fn, params, batch)
    keys = jax.random.split(jax.random.key(3), len(exact.nodes))
    deltas = {
        s.name: 1e-3 * jax.random.normal(key, s.shape, jnp.float32)
        for key, s in zip(keys, exact.nodes, strict=True)
    }

    @jax.jit
    def both():
        args = (params, batch)
        run = passes.perturbed(trace(loss, *args), args)
        slope = linearized(passes.perturbed(exact, args), exact.nodes)
        return run(deltas) - loss(*args), slope(deltas)

    return np.corrcoef(*both())[0, 1]


def test_differences_of_losses_need_float32_products():
    """A7: and the guard sees products in half precision."""
    assert correlation_with_the_derivative(jnp.matmul) > 0.99
    assert correlation_with_the_derivative(in_bfloat16) < 0.99
