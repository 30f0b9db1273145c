"""The program of one update stays small: operations of the lowered program, exactly.

Counts are deterministic, unlike seconds; `scripts/first_call.py` prints both.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.estimators.weight_noise import draw
from bpfree.program.trace import name_hash
from bpfree.sampling.noise import gaussian, rademacher

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import first_call  # noqa: E402

BUDGET = {
    "weight perturbation": 2,
    "likelihood ratio (noisy)": 3,
}


@pytest.fixture(scope="module")
def updates():
    return first_call.updates(12)


@pytest.mark.parametrize("name", BUDGET)
def test_operations_over_those_of_backprop(updates, name):
    mine, backprop = (first_call.operations(updates[n]()) for n in (name, "backprop"))
    assert mine <= BUDGET[name] * backprop


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("plan", [gaussian(), rademacher()])
def test_weight_noise_drawn_together_is_that_of_each_leaf_alone(plan, rank):
    """One program for leaves of one shape; the numbers are those of one call a leaf."""
    shapes = {"a": (30, 40), "b": (5,), "c": (30, 40), "d": (40, 30)}
    params = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    key = jax.random.key(3)
    together = draw(plan, rank, key, 2, params)
    for path, leaf in params.items():
        alone = draw(plan, rank, key, 2, {path: leaf})[path]
        jax.tree.map(np.testing.assert_array_equal, together[path], alone)
    leaf_key = jax.random.fold_in(jax.random.fold_in(key, 2), name_hash("b"))
    np.testing.assert_array_equal(together["b"], plan.draw(leaf_key, (5,), None)[0])
