"""Baselines: what the losses of the noisy passes are compared with.

A baseline is a function of the table of losses; what it returns stands next to the noise
in the place of the losses:

    weights = baseline(table),    both (draws, samples of a draw, *loss shape)

The samples of a draw share noise (an antithetic pair). A term stays unbiased if its
weight is the loss less something that does not depend on the noise of its draw.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bpfree.sampling.loop import Layout, sum_over_draws

Table = Callable[[jax.Array], jax.Array]


class Baseline(NamedTuple):
    """A function of a table of losses, and what the table holds.

    Attributes:
      weights: `table -> weights`, of the same shape.
      clean: the table holds L_k - L_0, for which a clean pass is made; else L_k.
      whole: of all draws, all of which are evaluated before the first is credited, their
        noise drawn twice; else of those of any chunk.
      across: it compares the examples of a batch, whose noise must be independent.
    """

    weights: Table
    clean: bool = True
    whole: bool = True
    across: bool = False

    @property
    def measures(self) -> bool:
        """Whether the weights are changes of the losses, in their units."""
        return self in (CLEAN, LEAVE_ONE_OUT)


def _left_out(table: jax.Array) -> jax.Array:
    """L_k minus the mean loss of all other draws.

    The whole draw is left out, not the sample alone: its members share noise, and a
    baseline that depends on a sample's noise would bias its term.
    """
    draws, group = table.shape[:2]
    of_draw = table.sum(1, keepdims=True)
    others = (of_draw.sum(0, keepdims=True) - of_draw) / (draws * group - group)
    return table - others


def _other_examples(table: jax.Array) -> jax.Array:
    """L_kb minus the mean loss of all other examples in the same sample.

    With its own loss in the mean, an example's term would shrink by 1 - 1/B.
    """
    losses = table.reshape(-1, table.shape[2])
    total = losses.sum(1, keepdims=True)
    centred = losses - (total - losses) / (losses.shape[1] - 1)
    return centred.reshape(table.shape)


def _standardised(table: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the samples: the scale of the loss is lost."""
    spread = table.std((0, 1), keepdims=True)
    return (table - table.mean((0, 1), keepdims=True)) / jnp.where(spread > 0, spread, 1)


def _centred_ranks(table: jax.Array) -> jax.Array:
    """Ranks over the samples, for each example by itself, from -1/2 to 1/2.

    Equal losses share a rank, and those that are not finite the worst.
    """

    losses = jnp.where(jnp.isfinite(table), table, jnp.inf)
    losses = losses.reshape(-1, *table.shape[2:])
    ranks = jax.scipy.stats.rankdata(losses, axis=0).astype(jnp.float32) - 1
    return (ranks / (len(losses) - 1) - 0.5).reshape(table.shape)


CLEAN = Baseline(lambda table: table, whole=False)
NONE = Baseline(lambda table: table, clean=False, whole=False)
LEAVE_ONE_OUT = Baseline(_left_out)
BATCH = Baseline(_other_examples, clean=False, whole=False, across=True)

NAMES = {
    "clean": CLEAN,
    "leave_one_out": LEAVE_ONE_OUT,
    "batch": BATCH,
    "none": NONE,
    "standardise": Baseline(_standardised),
    "centred_ranks": Baseline(_centred_ranks),
}


def weigher(baseline: Baseline, layout: Layout, evaluate: Table):
    """The function that a loop over chunks of draws asks for the weights of a chunk.

    Args:
      evaluate: `draws -> their table of losses`. A baseline of all draws (`whole`) calls
        it here, for all of them, before the loop that credits them begins.

    Returns: `(draws, table) -> weights`, `table` being a function without arguments that
    evaluates these draws; a `whole` baseline does not call it. A tree of several tables
    gives a tree of weights.
    """
    if not baseline.whole:
        return lambda draws, table: jax.tree.map(baseline.weights, table())
    tables = sum_over_draws(lambda i: ((), evaluate(i)), layout)[1]
    weights = jax.tree.map(baseline.weights, tables)
    return lambda draws, table: jax.tree.map(lambda w: w[draws], weights)
