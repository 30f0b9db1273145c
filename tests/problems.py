"""Tiny problems that the tests share (a helper, not a test)."""

import functools

import jax
import jax.numpy as jnp
import optax

import bpfree


def mlp_loss(params, batch):
    """Two nodes of one shape, and a parameter (`scale`) behind the last node."""
    x = batch["x"]
    h = jnp.tanh(bpfree.node(x @ params["w1"] + params["b1"][None], "h"))
    y = bpfree.node(h @ params["w2"] + params["b2"][None], "y")
    return jnp.sum((jnp.tanh(y) * params["scale"] - batch["t"]) ** 2, axis=1)


def mlp_params(dtype=jnp.float64, width=3):
    keys = jax.random.split(jax.random.key(1), 4)
    return {
        "w1": jax.random.normal(keys[0], (width, width), dtype),
        "b1": jax.random.normal(keys[1], (width,), dtype),
        "w2": jax.random.normal(keys[2], (width, width), dtype),
        "b2": jax.random.normal(keys[3], (width,), dtype),
        "scale": jnp.asarray(1.5, dtype),
    }


def mlp_batch(size=5, dtype=jnp.float64, width=3):
    x_key, t_key = jax.random.split(jax.random.key(2))
    return {
        "x": jax.random.normal(x_key, (size, width), dtype),
        "t": jax.random.normal(t_key, (size, width), dtype),
    }


def linear_loss(params, batch):
    """One linear node and a quadratic loss: smoothing leaves its gradient unchanged."""
    y = bpfree.node(batch["x"] @ params["w1"], "y")
    return 0.5 * jnp.sum((y - batch["t"]) ** 2, axis=1)


def linear_params():
    return {"w1": mlp_params()["w1"]}


def gradient(loss_fn, params, batch):
    """The truth: backprop of the mean loss."""
    return _compiled_gradient(loss_fn)(params, batch)


@functools.cache
def _compiled_gradient(loss_fn):
    return jax.jit(jax.grad(lambda p, b: mean_loss(loss_fn(p, b))))


def update(tx, params, batch):
    """(gradient, state) of one update, compiled."""
    return jax.jit(lambda p, b: tx.update(None, tx.init(p), p, batch=b))(params, batch)


def estimates(tx, params, batch, repeats, seed=0):
    """Independent estimates of one gradient: params-shaped, `repeats` in front."""
    keys = jax.random.split(jax.random.key(seed), repeats)
    state = tx.init(params)

    @jax.jit
    def run(keys, params, batch):
        one = lambda key: tx.estimator.estimate(key, params, batch, state).gradient  # noqa: E731
        return jax.vmap(one)(keys)

    return run(keys, params, batch)


def lenient(link):
    """`link` outside strict promotion: optax mixes integer counts with float decays."""

    def update(updates, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return link.update(updates, state, params, **extra)

    link = optax.with_extra_args_support(link)
    return optax.GradientTransformationExtraArgs(link.init, update)


def adam(learning_rate):
    return lenient(optax.adam(learning_rate))


def train(chain, params, batch, steps):
    """`steps` updates of `chain` on one batch: (params, state)."""

    @jax.jit
    def run(params, batch):
        def step(carry, _):
            params, state = carry
            zeros = optax.tree.zeros_like(params)
            updates, state = chain.update(zeros, state, params, batch=batch)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, chain.init(params)), length=steps)[0]

    return run(params, batch)


def pulled_and_truth(loss_fn, params, batch, *key, nodes=None):
    """The gradient twice: through `pullback`, and by backprop.

    The signals are the derivatives of the mean loss by what `inject` adds at the nodes.
    """

    @jax.jit
    def both(params, batch, *key):
        _, values, pull = bpfree.pullback(loss_fn, nodes)(params, batch, *key)
        zeros = jax.tree.map(jnp.zeros_like, values)

        def injected(deltas):
            out = bpfree.inject(loss_fn, nodes)(params, batch, deltas, *key)[0]
            return mean_loss(out)

        truth = jax.grad(lambda p: mean_loss(loss_fn(p, batch, *key)))(params)
        return pull(jax.grad(injected)(zeros)), truth

    return both(params, batch, *key)


def mean_loss(out):
    return (out[0] if isinstance(out, tuple) else out).mean()
