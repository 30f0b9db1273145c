"""Iterative node perturbation (INP)."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from bpfree.choices import Derivative, Noise, check_choice
from bpfree.estimators import normalized, perturbation
from bpfree.estimators.base import EstimatorTransformation
from bpfree.estimators.node_perturbation import NOISE
from bpfree.estimators.settings import Sigma
from bpfree.program.trace import LossFn, NodeFilter


def iterative_node_perturbation(
    loss_fn: LossFn,
    *,
    num_samples: int | Mapping[str, int] = 32,
    sigma: Sigma = 0.01,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    nodes: NodeFilter = None,
    noise: Noise = "gaussian",
    derivative: Derivative = "finite_difference",
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Iterative node perturbation: node by node, a projection on random directions.

    .. math::

        \hat g = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        \frac{1}{BK} \sum_{k=1}^{K} n_l\, (L_{l,k} - L_0)\,
        \frac{\delta_{l,k}}{\lVert\delta_{l,k}\rVert^2},
        \qquad \delta = \sigma\varepsilon,\ \varepsilon \sim N(0, I)

    L_{l,k} is the loss with noise at node l alone, n_l the number of values of node l in
    one example. The normalisation takes out the length of the noise: of one example and
    sample, the squared cosine with the gradient at node l is 1 / n_l on average. With
    random signs, whose length is fixed, it is layer-wise `node_perturbation`.

    Contract: aligned. The expectation is the gradient of the mean clean loss with an
    error O(sigma^2), or none with derivative="jvp"; the variance falls as 1 / (B K).

    Args:
      num_samples: K for every node, or {node: K}. A sample costs what is downstream of
        its node (all of a loop, for a node inside one).
      loss_fn, sigma, seed, chunk_size, antithetic, nodes, noise, derivative: as in
        `bpfree.node_perturbation`.
      sharding, example_batch: likewise.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count or sigma, no nodes, losses that are not (B,),
        counts that name other nodes; "jvp" with pairs, or where there is no derivative.

    Reference: Dalm, van Gerven and Ahmad, "Effective learning with node perturbation in
    multi-layer neural networks", arXiv:2310.00965.

    Example:
        >>> tx = bpfree.iterative_node_perturbation(loss_fn, num_samples=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_choice("noise", noise, Noise)
    return perturbation.build(
        loss_fn,
        plan=NOISE[noise](),
        num_samples=num_samples,
        sigma=sigma,
        chunk_size=chunk_size,
        antithetic=antithetic,
        nodes=nodes,
        sharding=sharding,
        layerwise=True,
        derivative=derivative,
        seed=seed,
        example_batch=example_batch,
        signals=normalized.own_signals,
    )
