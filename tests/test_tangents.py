"""Tangents of a custom_vjp: the transpose of its rule, wherever it stands."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import bpfree
from bpfree.program.tangents import with_tangents

MATRIX = jax.random.normal(jax.random.key(3), (4, 4), jnp.float64)


@jax.custom_vjp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defvjp(lambda v: (spike(v), v), lambda v, g: (g / (1 + jnp.abs(v)) ** 2,))


@jax.custom_vjp
def turned(v, count):
    """A value and a count; the rule is no symmetric matrix."""
    return jnp.tanh(v) * count, count + 1


turned.defvjp(
    lambda v, count: (turned(v, count), v),
    lambda v, g: (jnp.cos(v) * (g[0] @ MATRIX), None),
)


@jax.custom_vjp
def clipped(v):
    return v


clipped.defvjp(lambda v: (v, None), lambda _, g: (jnp.clip(g, -1.0, 1.0),))


def straight(x):
    value, count = turned(spike(x) + x, 2)
    return (value * count).sum()


def per_example(x):
    return jax.vmap(straight)(jnp.stack([x, 2 * x])).sum()


def jitted(x):
    return jax.jit(straight)(x)


def rematted(x):
    return jax.checkpoint(straight)(x)


def in_scan(x):
    def step(carry, scale):
        carry = turned(carry, 1)[0] + spike(scale * carry)
        return carry, carry.sum()

    carry, sums = lax.scan(step, x, jnp.arange(1.0, 4.0))
    return carry.sum() + (sums**2).sum()


def in_cond(x):
    return lax.cond(x.sum() > 0, lambda x: straight(x), lambda x: spike(x).sum(), x)


def in_scan_of_cond(x):
    def step(carry, flag):
        return lax.cond(flag, lambda c: turned(c, 1)[0], jnp.sin, carry), None

    return lax.scan(step, x, jnp.array([True, False, True]))[0].sum()


PROGRAMS = [
    straight, per_example, jitted, rematted, in_scan, in_cond, in_scan_of_cond
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_the_tangent_is_the_gradient_along_the_direction(program):
    x, along = jax.random.normal(jax.random.key(0), (2, 4), jnp.float64)
    value, slope = jax.jvp(with_tangents(program), (x,), (along,))
    assert np.allclose(value, program(x), rtol=1e-12)
    assert np.allclose(slope, jax.grad(program)(x) @ along, rtol=1e-10)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_reverse_mode_is_as_it_was(program):
    x = jax.random.normal(jax.random.key(0), (4,), jnp.float64)
    found = jax.grad(with_tangents(program))(x)
    assert np.allclose(found, jax.grad(program)(x), rtol=1e-10)


def test_a_rule_that_is_not_linear_is_named():
    with pytest.raises(ValueError, match="custom_vjp clipped at .* is not linear"):
        jax.jvp(with_tangents(clipped), (jnp.ones(2),), (jnp.ones(2),))


# -------------------------------------------------------------------------- estimators


def spiking_loss(params, batch):
    """Surrogate spikes in a loop over steps, as spiking nets are written."""

    def step(v, x):
        v = 0.8 * v + x @ params["in"]
        spikes = spike(v - 0.5)
        return v - spikes, spikes

    start = jnp.zeros((batch["x"].shape[1], params["in"].shape[1]), jnp.float64)
    spikes = lax.scan(step, start, batch["x"])[1].mean(0)
    logits = spikes @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["t"])


PARAMS = {
    "in": jax.random.normal(jax.random.key(0), (3, 6), jnp.float64),
    "out": jax.random.normal(jax.random.key(1), (6, 3), jnp.float64),
}
BATCH = {
    "x": jax.random.normal(jax.random.key(2), (4, 5, 3), jnp.float64),
    "t": jnp.arange(5) % 3,
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: bpfree.node_perturbation(
            spiking_loss, num_samples=4096, chunk_size=512, derivative="jvp"
        ),
        lambda: bpfree.forward_gradient(
            spiking_loss, num_samples=4096, chunk_size=512, tangents="weights"
        ),
    ],
    ids=["nodes", "weights"],
)
def test_directional_derivatives_find_the_surrogate_gradient(make):
    tx = make()
    truth = jax.grad(lambda p: spiking_loss(p, BATCH).mean())(PARAMS)
    found, _ = jax.jit(tx.update)(None, tx.init(PARAMS), PARAMS, batch=BATCH)
    for name in PARAMS:
        cosine = optax.losses.cosine_similarity(found[name].ravel(), truth[name].ravel())
        slope = (found[name] * truth[name]).sum() / (truth[name] ** 2).sum()
        assert cosine > 0.95, name
        assert abs(slope - 1) < 0.1, name


def test_learned_feedback_trains_through_surrogate_spikes():
    tx = optax.chain(
        bpfree.learned_feedback(spiking_loss, example_batch=BATCH, num_samples=8),
        optax.sgd(0.5),
    )

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(None, state, params, batch=BATCH)
        return (optax.apply_updates(params, updates), state), bpfree.value(state)

    with jax.numpy_dtype_promotion("standard"):  # of Adam, which fits the predictor
        (trained, state), losses = lax.scan(step, (PARAMS, tx.init(PARAMS)), length=100)
    assert bpfree.fault_message(state, spiking_loss, trained, BATCH) is None
    assert losses[-1] < losses[0] / 2
    assert abs(trained["in"] - PARAMS["in"]).max() > 0.1
