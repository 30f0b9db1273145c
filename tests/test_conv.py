"""Convolutions rewritten to the canonical layout compute what they did."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from bpfree import _jaxpr
from bpfree._conv import canonical_convs
from tests.statistics import assert_close

CASES = {
    "plain": {},
    "strides": {"window_strides": (2, 1)},
    "dilated": {"rhs_dilation": (1, 2)},
    "transposed": {"lhs_dilation": (2, 2), "window_strides": (1, 1)},
    "groups": {"feature_group_count": 2},
    "valid": {"padding": "VALID", "window_strides": (2, 2)},
    "channels first": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
}


def setting(dimension_numbers=("NHWC", "HWIO", "NHWC"), padding=((1, 2), (0, 1)), **more):
    groups = more.get("feature_group_count", 1)
    sizes = {"N": 3, "C": 4, "H": 6, "W": 5}
    kernel = {"H": 3, "W": 2, "I": 4 // groups, "O": 6}
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], [sizes[d] for d in dimension_numbers[0]])
    w = jax.random.normal(keys[1], [kernel[d] for d in dimension_numbers[1]])
    options = {"window_strides": (1, 1)} | more

    def conv(x, w):
        return lax.conv_general_dilated(
            x, w, padding=padding, dimension_numbers=dimension_numbers, **options
        )

    return conv, x, w


@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives_stay(case):
    conv, x, w = setting(**CASES[case])
    y, vjp = jax.vjp(conv, x, w)
    signal = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    assert_close(canonical_convs(conv)(x, w), y, rtol=1e-12, atol=1e-12)
    assert_close(canonical_convs(vjp)(signal), vjp(signal), rtol=1e-12, atol=1e-12)


def convs_of(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive is lax.conv_general_dilated_p:
            yield eqn.params["dimension_numbers"]
        for inner in _jaxpr.sub_jaxprs(eqn):
            yield from convs_of(inner)


def test_every_layout_is_canonical_afterwards():
    conv, x, w = setting(**CASES["strides"])
    signal, vjp = jax.vjp(jax.jit(conv), x, w)
    before = list(convs_of(_jaxpr.open_jaxpr(jax.make_jaxpr(vjp)(signal))[0]))
    after = list(
        convs_of(_jaxpr.open_jaxpr(jax.make_jaxpr(canonical_convs(vjp))(signal))[0])
    )
    canonical = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    assert set(after) == {canonical} and len(after) == len(before)
    assert set(before) != set(after)
