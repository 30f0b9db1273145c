"""Convolutions rewritten to the canonical layout compute what they did, and are fast."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import bpfree
from bpfree.program import tags
from bpfree.program.convolutions import canonical_convs
from tests.contract import ESTIMATORS
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


def test_values_in_loops_stay():
    conv, x, w = setting()

    def steps(x, w):
        return lax.scan(lambda total, x: (total + conv(x, w).sum(), conv(x, w)), 0.0, x)

    xs = jnp.stack([x, 2 * x])
    out, vjp = jax.vjp(steps, xs, w)
    assert_close(canonical_convs(steps)(xs, w), out, rtol=1e-12, atol=1e-12)
    assert_close(canonical_convs(vjp)(out), vjp(out), rtol=1e-12, atol=1e-12)


def convs_of(jaxpr, inside=True):
    """Dimension numbers of all convolutions, or of those in loops (inside=False)."""
    for eqn in jaxpr.eqns:
        if inside and eqn.primitive is lax.conv_general_dilated_p:
            yield eqn.params["dimension_numbers"]
        for inner in tags.sub_jaxprs(eqn):
            yield from convs_of(inner, inside or eqn.primitive is lax.scan_p)


def test_every_layout_is_canonical_afterwards():
    conv, x, w = setting(**CASES["strides"])
    signal, vjp = jax.vjp(jax.jit(conv), x, w)
    before = list(convs_of(tags.open_jaxpr(jax.make_jaxpr(vjp)(signal))[0]))
    after = list(
        convs_of(tags.open_jaxpr(jax.make_jaxpr(canonical_convs(vjp))(signal))[0])
    )
    canonical = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
    assert set(after) == {canonical} and len(after) == len(before)
    assert set(before) != set(after)


NHWC = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
OPTIONS = (
    {},
    {"pairing": "noisy"},
    {"pairing": "noisy", "chunk_size": 1},
    {"layerwise": True},
    {"chunk_size": 1},
    {"teacher": "losses"},
    {"teacher": "jvp"},
    {"tangents": "weights"},
    {"rank": 1, "tangents": "weights"},
)


def convnet_loss(params, batch):
    x = batch
    for name in ("first", "second"):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, params[name], (2, 2), "SAME", dimension_numbers=numbers
        )
        x = jax.nn.relu(bpfree.node(y, name))
    return (bpfree.node(x.mean((1, 2)) @ params["last"], "last") ** 2).sum(1)


@pytest.mark.parametrize("row", ESTIMATORS, ids=lambda row: row.name)
def test_no_estimator_leaves_a_slow_convolution_in_a_loop(row):
    """XLA's CPU backend runs all but the canonical layout 10 to 45 times slower there."""
    params = {
        "first": jnp.ones((3, 3, 2, 4)),
        "second": jnp.ones((3, 3, 4, 6)),
        "last": jnp.ones((6, 3)),
    }
    batch = jnp.ones((5, 8, 8, 2))
    known = {*row.parameters, *row.extras}
    for options in OPTIONS:
        if not known.issuperset(options):
            continue
        example = {"example_batch": batch} if "example_batch" in known else {}
        tx = row.factory(convnet_loss, **{**row.small, **example, **options})
        state = jax.eval_shape(tx.init, params)
        made = jax.make_jaxpr(lambda p, s: tx.update(None, s, p, batch=batch))  # noqa: B023
        found = set(convs_of(tags.open_jaxpr(made(params, state))[0], inside=False))
        assert found <= {NHWC}, (row.name, options)
