"""Small energy models that the tests share (a helper, not a test)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree import equilibrium as eq
from tests.statistics import relative_error

SWEEPS = 60
EXACT = eq.Relaxation(SWEEPS, SWEEPS, SWEEPS, factor=1.0, tolerance=None)


def truncated(key, shape, dtype):
    """Truncated normal of 1 / sqrt(fan_in): with dsilu a Jacobi radius of about .53."""
    scale = jnp.sqrt(jnp.asarray(shape[:-1]).prod().astype(dtype))
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) / scale


def dense(width):
    return nn.Dense(width, kernel_init=truncated, param_dtype=jnp.float64)


def conv(width, **options):
    options = {"kernel_size": (3, 3), "kernel_init": truncated} | options
    return nn.Conv(width, param_dtype=jnp.float64, **options)


def mlp(widths=(48, 48), classes=10, **options):
    options = {"activation": "dsilu", "readout": dense(classes)} | options
    return eq.layered([dense(w) for w in widths], **options)


def batch(size=4, shape=(64,), classes=10):
    x = jax.random.uniform(jax.random.key(0), (size, *shape), jnp.float64)
    label = jax.random.randint(jax.random.key(1), (size,), 0, classes)
    return {"x": x, "label": label}


def update(tx, params, batch):
    """(gradient, state) of one update, compiled."""
    return jax.jit(lambda p, b: tx.update(None, tx.init(p), p, batch=b))(params, batch)


def gradient(tx, params, batch):
    return update(tx, params, batch)[0]


@functools.cache
def reference():
    """The MLP 64-48-48-10, its parameters, its batch, and the exact gradient."""
    import bpfree

    energy, data = mlp(), batch()
    params = energy.init(jax.random.key(2), data["x"])
    settings = EXACT._replace(free=SWEEPS)
    exact = bpfree.recurrent_backprop(
        energy, relaxation=settings, adjoint_tolerance=1e-15
    )
    return energy, params, data, gradient(exact, params, data)


def errors(rule, radii):
    """Relative error of `rule(radius)` for each radius, one program for all of them."""
    import bpfree

    energy, params, data, truth = reference()

    @jax.jit
    def run(radii):
        def one(radius):
            tx = bpfree.equilibrium_propagation(
                energy, nudging=rule(radius), relaxation=EXACT
            )
            return tx.update(None, tx.init(params), params, batch=data)[0]

        return jax.vmap(one)(radii)

    found = run(jnp.asarray(radii))
    return [
        relative_error(jax.tree.map(lambda g, i=i: g[i], found), truth)
        for i in range(len(radii))
    ]
