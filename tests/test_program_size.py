"""The program of one update stays small: operations of the lowered program, exactly.

Counts are deterministic, unlike seconds; `scripts/first_call.py` prints both.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.program.tags import Site
from bpfree.program.trace import name_hash
from bpfree.sampling.noise import draw_chunk, gaussian, rademacher

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import first_call  # noqa: E402

BUDGET = {
    "node perturbation": 2,
    "likelihood ratio (clean)": 2,
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


@pytest.mark.parametrize("plan", [gaussian(), gaussian(4), rademacher()])
def test_noise_drawn_together_is_that_of_each_node_alone(plan):
    """One program for nodes of one shape; the numbers are those of one call a node."""
    shapes = {"a": ((3, 40), 0), "b": ((5,), None), "c": ((3, 40), 0), "d": ((40, 3), 1)}
    nodes = tuple(
        Site(name, "node", axis, shape, jnp.float32)
        for name, (shape, axis) in shapes.items()
    )
    key, draws = jax.random.key(3), jnp.arange(2, 4)
    together = jax.jit(lambda key: draw_chunk(plan, key, draws, nodes))(key)
    for name, (shape, axis) in shapes.items():
        keys = [jax.random.fold_in(key, i) for i in (2, 3)]
        keys = [jax.random.fold_in(k, name_hash(name)) for k in keys]
        alone = jnp.concatenate([plan.draw(k, shape, axis) for k in keys])
        bits = [np.asarray(z).view(np.uint32) for z in (together[name], alone)]
        assert np.array_equal(*bits)
