"""The program of one update stays small: operations of the lowered program.

Counts are deterministic, unlike seconds; `scripts/first_call.py` prints both. They grow
in proportion to depth, so those of 12 blocks follow from 2 and 4: to a thousandth of
what the script counts (`results/first_call.json`), at half the time.
"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.estimators import weight_noise
from bpfree.program import products
from bpfree.program.pieces import pieces
from bpfree.program.tags import Site
from bpfree.program.trace import name_hash
from bpfree.sampling.noise import draw_chunk, gaussian, rademacher
from bpfree.sampling.words import random_words

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import first_call  # noqa: E402

BUDGET = {
    "node perturbation": 1.35,
    "likelihood ratio (clean)": 1.45,
    "likelihood ratio (noisy)": 1.5,
    "forward gradient": 1.95,
    "weight perturbation": 1.5,
    "weight perturbation (rank 1)": 1.6,
    "learned feedback": 2.25,
    "learned feedback (responses)": 2.65,
    "layer-wise": 2.25,
}


@pytest.fixture(scope="module")
def operations():
    """name -> operations of 12 blocks."""
    shallow, deep = first_call.updates(2), first_call.updates(4)

    def count(name):
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            two, four = (first_call.operations(u[name]()) for u in (shallow, deep))
        return four + 4 * (four - two)

    return count


@pytest.fixture(scope="module")
def backprop(operations):
    return operations("backprop")


@pytest.mark.parametrize("name", BUDGET)
def test_operations_over_those_of_backprop(operations, backprop, name):
    assert operations(name) <= BUDGET[name] * backprop


# Arrays that are hashed side by side, one of a kind, and large ones: of one shape, alone.
SHAPES = {"a": (30, 40), "b": (5,), "c": (30, 40), "d": (40, 30), "e": (), "f": (4, 3)}
LARGE = {"g": (3, 70_000), "h": (3, 70_000), "i": (70_000, 2)}
BLOCKS = {"j": (3, 32, 128), "k": (3, 8, 640), "l": (3, 32, 8, 16)}  # cut into rows alike


@pytest.mark.parametrize("plan", [gaussian(), rademacher()])
@pytest.mark.parametrize("axis", [None, 0])
def test_noise_hashed_together_is_that_of_each_node_alone(plan, axis):
    every = SHAPES | LARGE | BLOCKS
    shapes = {k: v for k, v in every.items() if v or axis is None}
    sites = [Site(k, "node", axis, v, jnp.float32) for k, v in shapes.items()]
    key = jax.random.key(3)
    together = jax.jit(lambda i: draw_chunk(plan, key, i, tuple(sites)))(jnp.array([2]))
    draw = jax.jit(plan.draw, static_argnums=(1, 2))
    for name, shape in shapes.items():
        mine = jax.random.fold_in(jax.random.fold_in(key, 2), name_hash(name))
        np.testing.assert_array_equal(together[name], draw(mine, shape, axis))


def test_words_are_those_of_jax():
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2), name_hash("b"))
    site = Site("b", "node", 0, (5, 7), jnp.float32)
    normals = draw_chunk(gaussian(), jax.random.key(3), jnp.array([2]), (site,))["b"]
    expected = jax.random.normal(key, (1, 5, 7), jnp.float32)
    np.testing.assert_array_equal(normals, expected)


@pytest.mark.parametrize("shape", [(5, 32, 128), (5, 8, 640), (4, 2048)])
def test_words_in_blocks_are_those_of_jax(shape):
    """Of several draws at once, beside arrays of other widths."""
    keys = jax.random.split(jax.random.key(3), 6).reshape(2, 3)
    shapes = [(5, 16, 256), shape, (5, 70_000)]
    _, words, _ = jax.jit(lambda keys: random_words(keys, shapes))(keys)
    for k in range(2):
        expected = jax.random.bits(keys[k, 1], shape, jnp.uint32)
        np.testing.assert_array_equal(words[k], expected)


# The sums are alike to rounding, whichever operand has the row of zeros.
PRODUCTS = {
    "row": ((7,), (7, 5), (([0], [0]), ([], []))),
    "column": ((4, 7, 2), (2, 7, 1), (([1, 2], [1, 0]), ([], []))),
    "batch": ((3, 8), (3, 8, 6, 2), (([0], [0]), ([1], [1]))),
    "batch and column": ((6, 3, 8), (8, 3), (([2], [0]), ([1], [1]))),
    "matrices": ((3, 7), (7, 5), (([1], [0]), ([], []))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_with_a_vector_is_one_of_matrices_on_cpu_alone(name):
    *shapes, numbers = PRODUCTS[name]
    lhs, rhs = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(shapes))
    product = jax.jit(lambda x, y: products.dot_general(x, y, numbers))
    plain = jax.jit(lambda x, y: jax.lax.dot_general(x, y, numbers))
    np.testing.assert_allclose(product(lhs, rhs), plain(lhs, rhs), rtol=1e-5, atol=1e-6)
    rows = re.findall(
        r"dot_general .*-> tensor<([\dx]*)xf64>", lowered(product, lhs, rhs)
    )
    assert len(rows) == 1
    size = np.prod([int(n) for n in rows[0].split("x")])
    assert size == plain(lhs, rhs).size * (1 if name == "matrices" else 2)
    assert "concatenate" not in lowered(product, lhs, rhs, platform="tpu")


def lowered(fn, *args, platform="cpu") -> str:
    return fn.trace(*args).lower(lowering_platforms=(platform,)).as_text()


def test_a_single_piece_is_no_slice():
    """A slice's offset would make each reader a kernel of its own."""

    def readers(x):
        return pieces(x, [np.array([i]) for i in (3, 5, 0)], 1)

    x = jnp.arange(24.0).reshape(2, 6, 2)
    program = jax.jit(readers).lower(x).compile().as_text()
    for own, i in zip(readers(x), (3, 5, 0), strict=True):
        np.testing.assert_array_equal(own, x[:, i : i + 1])
    assert "constant(5)" not in program and " gather(" in program


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("plan", [gaussian(), rademacher()])
def test_weight_noise_drawn_together_is_that_of_each_leaf_alone(plan, rank):
    params = {path: jnp.zeros(shape) for path, shape in SHAPES.items()}
    key = jax.random.key(3)
    draw = jax.jit(lambda params: weight_noise.draw(plan, rank, key, 2, params))
    together = draw(params)
    for path, leaf in params.items():
        alone = draw({path: leaf})[path]
        jax.tree.map(np.testing.assert_array_equal, together[path], alone)
