"""Small energy models that the tests share (a helper, not a test)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

import bpfree
from bpfree import equilibrium as eq
from tests.problems import update
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


def gradient(tx, params, batch):
    return update(tx, params, batch)[0]


def exact(energy, params, data):
    """(gradient, state) by implicit differentiation."""
    tx = bpfree.recurrent_backprop(energy, relaxation=EXACT, adjoint_tolerance=1e-15)
    return update(tx, params, data)


@functools.cache
def reference():
    """The MLP 64-48-48-10, its parameters, its batch, and the exact gradient."""
    energy, data = mlp(), batch()
    params = energy.init(jax.random.key(2), data["x"])
    return energy, params, data, exact(energy, params, data)[0]


def errors(energy, params, data, truth, rule, radii):
    """Relative error of `rule(radius)` for each radius, one program for all of them."""

    @jax.jit
    def run(params, data, radii):
        def one(radius):
            tx = bpfree.equilibrium_propagation(
                energy, nudging=rule(radius), relaxation=EXACT
            )
            return tx.update(None, tx.init(params), params, batch=data)[0]

        return jax.vmap(one)(radii)

    found = run(params, data, jnp.asarray(radii))
    return [relative_error(g, truth) for g in unstacked(found, len(radii))]


def errors_of_rules(energy, params, data, truth, rules, radii):
    """The same for several rules at once: errors[rule][radius], from one program.

    The gradient is linear in the weights, so all points of all rules are relaxed once.
    """
    roots = tuple({root: None for rule in rules for root in rule.roots})
    union = eq.Nudging(1.0, roots, (1.0,) * len(roots))

    def weights(rule, which):
        by_root = dict(zip(rule.roots, rule.coefficients, strict=True))
        return [by_root.get(roots[i], 0.0) for i in which]

    real = jnp.asarray([weights(rule, union.real) for rule in rules]).real
    complex_ = jnp.asarray([weights(rule, union.complex) for rule in rules])

    @jax.jit
    def run(params, data, radii):
        def at(radius):
            rule, one = union._replace(radius=radius), jnp.ones((), jnp.float64)
            phases = eq.solve(energy.bind(params, data), rule, EXACT, one).phases

            def gradient(real, complex_):
                scale = radius.astype(complex_.dtype)
                pairs = zip(phases, (real / radius, complex_ / scale), strict=True)
                weighted = [p._replace(weights=w) for p, w in pairs]
                return jax.grad(lambda p: -energy.weighted(p, data, *weighted))(params)

            return jax.vmap(gradient)(real, complex_)

        return jax.vmap(at, out_axes=1)(radii)

    size = data["label"].shape[0]
    found = jax.tree.map(lambda g: g / size, run(params, data, jnp.asarray(radii)))
    return [
        [relative_error(g, truth) for g in unstacked(row, len(radii))]
        for row in unstacked(found, len(rules))
    ]


def unstacked(tree, count):
    return [jax.tree.map(lambda g, i=i: g[i], tree) for i in range(count)]
