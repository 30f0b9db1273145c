"""What a compiled estimate costs: memory flat in the samples, and no prefix twice.

The numbers are XLA's own, of the program as users compile it.
"""

import jax
import jax.numpy as jnp
import pytest

import bpfree

INPUTS, HIDDEN, SIZE = 1024, 64, 32
PARAMS = {
    "w1": jnp.zeros((INPUTS, HIDDEN), jnp.float32),
    "w2": jnp.zeros((HIDDEN, HIDDEN), jnp.float32),
}
BATCH = jnp.zeros((SIZE, INPUTS), jnp.float32)
FIRST_PRODUCT = 2 * SIZE * INPUTS * HIDDEN
SECOND_PRODUCT = 2 * SIZE * HIDDEN * HIDDEN

pytestmark = pytest.mark.usefixtures("optimized")
ESTIMATORS = {
    "node_perturbation": (bpfree.node_perturbation, {}),
    "likelihood_ratio": (bpfree.likelihood_ratio, {}),
    "leave_one_out": (bpfree.node_perturbation, {"baseline": "leave_one_out"}),
}


def loss(params, batch):
    h = jnp.tanh(bpfree.node(batch @ params["w1"], "h"))
    return (bpfree.node(h @ params["w2"], "y") ** 2).sum(1)


def compiled(name, **options):
    make, more = ESTIMATORS[name]
    tx = make(loss, **options, **more)
    state = tx.init(PARAMS)
    update = lambda params, batch: tx.update(None, state, params, batch=batch)[0]  # noqa: E731
    return jax.jit(update).lower(PARAMS, BATCH).compile()


def memory(name, num_samples):
    stats = compiled(name, num_samples=num_samples).memory_analysis()
    return stats.temp_size_in_bytes


@pytest.mark.parametrize("name", ["node_perturbation", "likelihood_ratio"])
def test_memory_does_not_grow_with_the_samples(name):
    """[evosax, HyperscaleES] keep the noise of all samples. Ours are 8 bytes each."""
    few, many = memory(name, 64), memory(name, 1024)
    assert few > SIZE * HIDDEN * 4
    assert many <= 1.2 * few


def test_memory_of_the_left_out_baseline_grows_by_its_table_of_losses():
    few, many = memory("leave_one_out", 64), memory("leave_one_out", 1024)
    table = 1024 * SIZE * 4
    assert many - few <= 2 * table


def flops(name, chunk_size):
    """XLA counts the body of the loop over samples once."""
    program = compiled(name, num_samples=32, chunk_size=chunk_size)
    return program.cost_analysis()["flops"]


def test_a_sample_costs_what_follows_its_first_node():
    """The first product is in the clean pass and in the pull, not in the loop [EvoX]."""
    one, two = (flops("node_perturbation", chunk_size) for chunk_size in (1, 2))
    assert 2 * FIRST_PRODUCT < one < 2.5 * FIRST_PRODUCT
    assert SECOND_PRODUCT < two - one < FIRST_PRODUCT / 2
