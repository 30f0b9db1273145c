"""Losses whose nodes sit inside jit, vmap, scan and remat (a helper, not a test)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

import bpfree
from tests import problems

BATCH = problems.mlp_batch()
STEPS = SIZE = 4  # as many time steps as examples: only the axis tells them apart
SEQUENCES = {
    "x": jax.random.normal(jax.random.key(8), (SIZE, STEPS, 3), jnp.float64),
    "t": problems.mlp_batch(SIZE)["t"],
}


def layer(w, x, name, batch_axis=bpfree.INFERRED):
    return jnp.tanh(bpfree.node(x @ w, name, batch_axis))


def two_layers(params, batch, wrap=lambda f: f):
    """mlp_loss without biases, its layers inside `wrap`."""
    h = wrap(functools.partial(layer, name="h"))(params["w1"], batch["x"])
    y = wrap(functools.partial(layer, name="y"))(params["w2"], h)
    return ((y * params["scale"] - batch["t"]) ** 2).sum(1)


def nested_jit(params, batch):
    inner = jax.jit(lambda *args: two_layers(*args, wrap=jax.jit))
    return inner(params, batch)


def remat(params, batch):
    return two_layers(params, batch, wrap=jax.checkpoint)


def remat_with_a_policy(params, batch):
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(two_layers, policy=policy)(params, batch)


def per_example(params, batch):
    def one(x, t):
        h = layer(params["w1"], x, "h")
        y = layer(params["w2"], h, "y")
        return ((y - t) ** 2).sum()

    return jax.vmap(one)(batch["x"], batch["t"])


def per_example_behind(params, batch):
    """The mapped axis is the last one of the node."""

    def one(x, t):
        y = layer(params["w1"], x, "y")
        return ((y - t) ** 2).sum()

    return jax.vmap(one, in_axes=(1, 0))(batch["x"].T, batch["t"])


def heads(params, batch):
    """`vmap` over weights: the node is (heads, B, d), or (B, heads, d) by out_axes."""
    weights = jnp.stack([params["w1"], params["w2"]])
    h = jax.vmap(functools.partial(layer, name="h"), (0, None))(weights, batch["x"])
    y = jax.vmap(functools.partial(layer, name="y"), (0, 0), 1)(weights, h)
    return (y.sum(1) ** 2).sum(1)


def tied(params, batch):
    h = layer(params["w1"], batch["x"], "h")
    y = layer(params["w1"], h, "y")
    return ((y @ params["w1"].T - batch["t"]) ** 2).sum(1)


def cell(params, h, x):
    h = layer(params["w1"], x, "x_part") + layer(params["w2"], h, "h_part")
    return h, h


def recurrent(params, batch, body=cell, **options):
    start = jnp.zeros_like(batch["t"])
    xs = batch["x"].swapaxes(0, 1)
    last, hs = lax.scan(functools.partial(body, params), start, xs, **options)
    y = bpfree.node(hs.sum(0) + params["scale"] * last, "y")
    return ((y - batch["t"]) ** 2).sum(1)


def recurrent_with_remat(params, batch):
    return recurrent(params, batch, jax.checkpoint(cell))


def recurrent_per_example(params, batch):
    """Scan inside vmap."""

    def one(xs, t):
        def step(h, x):
            y = x @ params["w1"] + h @ params["w2"]
            return jnp.tanh(bpfree.node(y, "h")), None

        h, _ = lax.scan(step, jnp.zeros_like(t), xs)
        return ((h - t) ** 2).sum()

    return jax.vmap(one)(batch["x"], batch["t"])


def scanned_layers(params, batch):
    """Depth by scan over stacked weights, with a scan over time in every layer."""

    def depth(x, w):
        def time(h, x):
            return (layer(w, x + h, "h"),) * 2

        return lax.scan(time, jnp.zeros_like(batch["t"]), x)[1], None

    weights = jnp.stack([params["w1"], params["w2"]])
    hs, _ = lax.scan(depth, batch["x"].swapaxes(0, 1), weights)
    return ((hs[-1] - batch["t"]) ** 2).sum(1)


def shared_value(params, batch):
    """A node on the weights themselves: one value for the whole batch."""
    w = bpfree.node(params["w1"], "w", batch_axis=None)
    y = bpfree.node(batch["x"] @ w * params["scale"], "y")
    return ((jnp.tanh(y) - batch["t"]) ** 2).sum(1)


def one_loss(params, batch):
    """One experiment for the whole batch: losses of shape ()."""
    return jnp.sqrt(two_layers(params, batch).sum())


def derivative_inside(params, batch):
    """A loss that differentiates its own net (a physics-informed one)."""

    def net(x):
        return layer(params["w2"], layer(params["w1"], x, "h"), "y").sum(1)

    value, slope = jax.jvp(net, (batch["x"],), (jnp.ones_like(batch["x"]),))
    return (value - lax.stop_gradient(slope)) ** 2


STRAIGHT = [
    two_layers,
    nested_jit,
    remat,
    remat_with_a_policy,
    per_example,
    per_example_behind,
    heads,
    tied,
    shared_value,
    one_loss,
    derivative_inside,
]
IN_TIME = [
    recurrent,
    functools.partial(recurrent, reverse=True),
    functools.partial(recurrent, unroll=2),
    recurrent_with_remat,
    recurrent_per_example,
    scanned_layers,
]
CASES = [(loss, BATCH) for loss in STRAIGHT] + [(loss, SEQUENCES) for loss in IN_TIME]


def case_name(value):
    if isinstance(value, functools.partial):
        return f"{value.func.__name__}_{'_'.join(value.keywords)}"
    return getattr(value, "__name__", "")
