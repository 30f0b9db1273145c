"""Functions of W + A B^T without the sum are the functions of the sum."""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import bpfree
from bpfree.program import lowrank, tags
from tests.statistics import assert_close

N = 6
KEYS = map(jax.random.key, itertools.count())


def normal(*shape):
    return jax.random.normal(next(KEYS), shape, jnp.float64)


def low_rank(*shape, rank=2):
    left, right = normal(*shape[:-1], rank), normal(shape[-1], rank)
    return lowrank.LowRank(normal(*shape), left, right)


X = normal(4, N)
IMAGE = normal(2, 5, 5, 3)


def in_a_scan(w, stack):
    def step(h, layer):
        return jnp.tanh(h @ layer + h @ w), h.sum()

    return lax.scan(step, X, stack)


def carried(w):
    return lax.scan(lambda w, x: (w * x, w @ X.T), w, jnp.ones(2))


def conv(kernel, **options):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    return lax.conv_general_dilated(IMAGE, kernel, (2, 1), "SAME", **options)


def conv_channels_first(kernel):
    image = IMAGE.transpose(0, 3, 1, 2)
    numbers = ("NCHW", "HWIO", "NCHW")
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "VALID", dimension_numbers=numbers
    )


CASES = {
    "x @ w": (lambda w: X @ w, [(N, 3)]),
    "w @ x": (lambda w: w @ X.T, [(3, N)]),
    "x @ w.T": (lambda w: lax.dot_general(X, w, (((1,), (1,)), ((), ()))), [(3, N)]),
    "transposed": (lambda w: X @ w.T, [(3, N)]),
    "heads": (lambda w: jnp.einsum("bn,nhd->bhd", X, w), [(N, 2, 3)]),
    "batched": (lambda w: jnp.einsum("bn,bnd->bd", X, w), [(4, N, 3)]),
    "batched, weights first": (lambda w: jnp.einsum("bdn,bn->bd", w, X), [(4, 3, N)]),
    "two of them": (lambda v, w: jnp.tanh(X @ v) @ w, [(N, 5), (5, 3)]),
    "product of both": (lambda v, w: v @ w, [(3, 5), (5, N)]),
    "elementwise": (lambda w: jnp.sin(w) + w.sum(), [(N, 3)]),
    "lookup": (lambda w: w[jnp.asarray([0, 2, 2])], [(N, 3)]),
    "returned": (lambda w: w, [(N, 3)]),
    "cast": (lambda w: X.astype(jnp.float32) @ w.astype(jnp.float32), [(N, 3)]),
    "jit": (lambda w: jax.jit(lambda w: jax.jit(jnp.dot)(X, w))(w), [(N, 3)]),
    "remat": (lambda w: jax.checkpoint(lambda w: jnp.tanh(X @ w))(w), [(N, 3)]),
    "vmap": (lambda w: jax.vmap(lambda x: w @ x)(X), [(3, N)]),
    "marked": (lambda w: bpfree.node(X @ bpfree.hold(w, "w")), [(N, 3)]),
    "scan": (in_a_scan, [(N, N), (3, N, N)]),
    "carried by a scan": (carried, [(3, N)]),
    "stack of vectors": (
        lambda b: lax.scan(lambda h, b: (h + b[None], 0), X, b),
        [(3, N)],
    ),
    "conv": (conv, [(3, 3, 3, 4)]),
    "grouped conv": (lambda w: conv(w, feature_group_count=3), [(3, 3, 1, 6)]),
    "conv, channels first": (conv_channels_first, [(2, 2, 3, 4)]),
}


@pytest.mark.parametrize("fn, shapes", CASES.values(), ids=CASES)
def test_it_is_the_function_of_the_sum(fn, shapes):
    weights = [low_rank(*shape) for shape in shapes]
    found = jax.jit(lambda ws: lowrank.evaluate(fn, *ws))(weights)
    truth = fn(*(w.full() for w in weights))
    rounding = 1e-6 if fn is CASES["cast"][0] else 1e-12
    assert_close(found, truth, rtol=10 * rounding, atol=rounding)


@pytest.mark.parametrize(
    "name", ["x @ w", "w @ x", "x @ w.T", "heads", "conv", "scan", "jit", "remat", "vmap"]
)
def test_the_sum_is_not_formed(name):
    """No value of the shape of a weight is computed."""
    fn, shapes = CASES[name]
    weights = [low_rank(*shape) for shape in shapes]
    jaxpr = jax.make_jaxpr(lambda ws: lowrank.evaluate(fn, *ws))(weights)
    assert not set(shapes) & set(shapes_of(jaxpr.jaxpr))


def shapes_of(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in tags.sub_jaxprs(eqn):
            yield from shapes_of(inner)


LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "HWIO", "NCHW"), ("HWNC", "HWIO", "NHWC")]


@pytest.mark.parametrize("numbers", LAYOUTS)
@pytest.mark.parametrize("rank, groups", [(1, 1), (2, 8)])
def test_samples_of_a_moving_input_share_one_convolution(numbers, rank, groups):
    """Their filters are channels of it, as long as the layer has as many (here 8).

    The gate sees convolutions of more filters, which have a group for each sample.
    """
    kernels = [low_rank(3, 3, 3, 5, rank=1), low_rank(3, 3, 5, 8, rank=rank)]
    parts = [(normal(4, *w.left.shape), normal(4, *w.right.shape)) for w in kernels]

    def deep(first, second):
        image = IMAGE.transpose(["NHWC".index(c) for c in numbers[0]])
        for kernel, out in ((first, numbers[0]), (second, numbers[2])):
            options = {"dimension_numbers": (*numbers[:2], out)}
            image = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", **options)
        return image

    def added(evaluate, scale, noise):
        pairs = zip(kernels, noise, strict=True)
        sums = [w._replace(left=scale * n[0], right=n[1]) for w, n in pairs]
        return evaluate(deep, *sums)

    def samples(evaluate):
        one = lambda *args: added(evaluate, *args)  # noqa: E731
        both = jax.vmap(one, (0, None))  # an antithetic pair shares `right`
        return jax.vmap(both, (None, 0))(jnp.asarray([1.0, -1.0]), parts)

    truth = samples(lambda fn, *ws: fn(*(w.full() for w in ws)))
    assert_close(samples(lowrank.evaluate), truth, rtol=1e-11, atol=1e-11)
    jaxpr = jax.make_jaxpr(lambda: samples(lowrank.evaluate))().jaxpr
    found = set(re.findall(r"feature_group_count=(\d+)", str(jaxpr)))
    assert max(map(int, found)) == groups


def test_where_no_rule_applies_the_sum_would_be_seen():
    fn, shapes = CASES["elementwise"]
    weights = [low_rank(*shape) for shape in shapes]
    jaxpr = jax.make_jaxpr(lambda ws: lowrank.evaluate(fn, *ws))(weights)
    assert set(shapes) <= set(shapes_of(jaxpr.jaxpr))
