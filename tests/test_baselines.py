"""Baselines that rank the losses over the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree.sampling import baselines
from tests import problems
from tests.statistics import assert_close, flat

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
RANKS = baselines.NAMES["centred_ranks"]


def test_ranks_of_each_example_by_itself():
    """Equal losses share a rank; those that are not finite share the worst."""
    first = [3.0, jnp.nan, 1.0, 3.0, jnp.inf]
    table = jnp.asarray([first, [1.0, 2.0, 3.0, 4.0, 5.0], [7.0] * 5]).T[:, None]
    found = RANKS.weights(table)
    assert found.shape == (5, 1, 3)
    assert found[:, 0, 0].tolist() == [-0.125, 0.375, -0.5, -0.125, 0.375]
    assert found[:, 0, 1].tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]
    assert not found[:, 0, 2].any()
    pairs = table.reshape(5, 3)[:4].reshape(2, 2, 3)
    expected = RANKS.weights(pairs.reshape(4, 1, 3)).reshape(2, 2, 3)
    assert_close(RANKS.weights(pairs), expected, rtol=0.0)


def direction_of_examples():
    """sum_b g_b / |g_b|, g_b the gradient of example b at its nodes, pulled to params."""
    values = bpfree.record(problems.mlp_loss)(PARAMS, BATCH)[1]

    def total(deltas):
        return bpfree.inject(problems.mlp_loss)(PARAMS, BATCH, deltas)[0].sum()

    at_nodes = jax.grad(total)(jax.tree.map(jnp.zeros_like, values))
    size = sum((g**2).sum(1) for g in at_nodes.values()) ** 0.5
    weighted = lambda p: (problems.mlp_loss(p, BATCH) / size).mean()  # noqa: E731
    return jax.grad(weighted)(PARAMS)


@pytest.mark.parametrize(
    "make, truth",
    [
        (bpfree.node_perturbation, direction_of_examples),
        (
            bpfree.weight_perturbation,
            lambda: problems.gradient(problems.mlp_loss, PARAMS, BATCH),
        ),
    ],
)
def test_ranks_keep_the_direction_and_no_scale(make, truth):
    """Of each table: that of an example's nodes, or of the mean loss."""

    def mean(scale):
        tx = make(
            lambda p, b: scale * problems.mlp_loss(p, b),
            num_samples=32,
            sigma=1e-3,
            baseline="centred_ranks",
        )
        found = problems.estimates(tx, PARAMS, BATCH, 256)
        return flat(without_scale(found), repeats=True).mean(0)

    plain, larger = mean(1.0), mean(1e3)
    wanted = flat(without_scale(truth()))
    assert plain @ wanted / np.linalg.norm(plain) / np.linalg.norm(wanted) > 0.98
    np.testing.assert_allclose(larger, plain, rtol=1e-3, atol=1e-3 * abs(plain).max())


def without_scale(tree):
    """What noise stands for: the loss's own parameter gets the loss's own derivative."""
    return {name: leaf for name, leaf in tree.items() if name != "scale"}


def test_it_takes_two_draws():
    with pytest.raises(ValueError, match="at least two draws"):
        bpfree.node_perturbation(
            problems.mlp_loss, num_samples=1, baseline="centred_ranks"
        )
    with pytest.raises(ValueError, match="baseline='ranks' is unknown.*centred_ranks"):
        bpfree.node_perturbation(problems.mlp_loss, baseline="ranks")
