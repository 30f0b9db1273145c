"""Equal equations of a program are evaluated once, and only those."""

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.program.common import once


def primitives(fn, *args) -> list[str]:
    return [eqn.primitive.name for eqn in jax.make_jaxpr(fn)(*args).eqns]


def test_equal_equations_are_evaluated_once():
    def fn(tree):
        x, y = tree["x"], tree["y"]
        return jnp.sin(x * 2.0) + jnp.cos(y), jnp.sin(x * 2.0) * jnp.cos(x)

    tree = {"x": jnp.arange(3.0), "y": jnp.ones(3)}
    found = primitives(once(fn), tree)
    assert found.count("sin") == 1 and found.count("mul") == 2  # x * 2 and the product
    assert found.count("cos") == 2  # of x, and of y
    for mine, theirs in zip(jax.jit(once(fn))(tree), jax.jit(fn)(tree), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_literals_parameters_and_inputs_tell_equations_apart():
    def fn(x):
        literals = x * 2.0, x * -0.0, x * 0.0
        axes = x.sum(0), x.sum(1)
        return *literals, *axes, x - 1.0, 1.0 - x, x.astype(jnp.bfloat16)

    x = jnp.arange(9.0).reshape(3, 3) - 4
    assert primitives(once(fn), x) == primitives(fn, x)
    for mine, theirs in zip(once(fn)(x), fn(x), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(jnp.signbit(mine), jnp.signbit(theirs))


def test_constants_of_equal_value_are_not_mixed_up():
    large = jnp.arange(3000.0)
    other = large.at[1500].set(-1.0)  # where a printed array is cut short

    def fn(x):
        return x + large, x + other

    first, second = once(fn)(jnp.zeros(3000))
    np.testing.assert_array_equal(first, large)
    np.testing.assert_array_equal(second, other)


def test_effects_happen_as_often_as_written():
    seen = []

    def fn(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x)
        jax.debug.callback(lambda v: seen.append(float(v)), x)
        return x * 1.0

    jax.block_until_ready(jax.jit(once(fn))(jnp.float32(3.0)))
    jax.effects_barrier()
    assert seen == [3.0, 3.0]


def test_it_has_derivatives_and_vmap():
    def fn(x):
        return jnp.sin(x) * jnp.sin(x)

    x = jnp.linspace(0, 1, 4)
    np.testing.assert_allclose(jax.vmap(jax.grad(once(fn)))(x), jnp.sin(2 * x), rtol=1e-6)
