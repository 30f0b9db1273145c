"""The program of one update stays small: operations of the lowered program.

Counts are deterministic, unlike seconds; `scripts/first_call.py` prints both. They grow
in proportion to depth, so those of 12 blocks follow from 2 and 4: to a thousandth of
what the script counts (`results/first_call.json`), at half the time.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.estimators import weight_noise
from bpfree.program.tags import Site
from bpfree.program.trace import name_hash
from bpfree.sampling.noise import draw_chunk, gaussian, rademacher

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import first_call  # noqa: E402

BUDGET = {
    "node perturbation": 1.35,
    "likelihood ratio (clean)": 1.45,
    "likelihood ratio (noisy)": 1.5,
    "forward gradient": 1.95,
    "weight perturbation": 1.5,
    "weight perturbation (rank 1)": 1.6,
    "learned feedback": 2.65,
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


@pytest.mark.parametrize("plan", [gaussian(), rademacher()])
@pytest.mark.parametrize("axis", [None, 0])
def test_noise_hashed_together_is_that_of_each_node_alone(plan, axis):
    shapes = {k: v for k, v in (SHAPES | LARGE).items() if v or axis is None}
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
