"""The likelihood ratio as published: constructors with the papers' choices."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from bpfree.estimators.base import EstimatorTransformation
from bpfree.estimators.layerwise import Budget
from bpfree.estimators.likelihood_ratio import likelihood_ratio
from bpfree.estimators.settings import Sigma
from bpfree.program.trace import LossFn, NodeFilter


def lr2021(
    loss_fn: LossFn,
    *,
    num_samples: int = 10,
    sigma: Sigma = 2**0.5,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    nodes: NodeFilter = None,
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    """The push-out likelihood ratio of 2021: Laplace noise at all nodes, raw losses.

    `likelihood_ratio(noise="laplace", baseline="none", pairing="noisy")`: one forward
    pass a sample, and no other. The authors' Laplace noise has scale 1, hence standard
    deviation sqrt(2). Contract, arguments and errors: those of `likelihood_ratio`.

    Reference: Peng, Xiao, Heidergott, Hong and Lam, "A new likelihood ratio method for
    training artificial neural networks", INFORMS Journal on Computing (2021).

    Example:
        >>> tx = bpfree.lr2021(loss_fn, num_samples=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    return likelihood_ratio(
        loss_fn,
        num_samples=num_samples,
        sigma=sigma,
        seed=seed,
        chunk_size=chunk_size,
        baseline="none",
        noise="laplace",
        nodes=nodes,
        sharding=sharding,
        example_batch=example_batch,
    )


def ulr(
    loss_fn: LossFn,
    *,
    num_samples: Budget = 100,
    sigma: Sigma = 0.1,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    nodes: NodeFilter = None,
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    """The unified likelihood ratio of 2024: antithetic pairs of normals, layer by layer.

    `likelihood_ratio(antithetic=True, baseline="none", layerwise=True)`, with num_samples
    noisy passes for each node, or {node: count}. Make the loss
    with `bpfree.supervised(..., noise="auto")` for its weight noise in early
    convolutions; the sigmas of the two kinds differ (a mapping: 1e-3 for weights and
    1e-1 for outputs in the code of the group), and may be learned there. Contract,
    arguments and errors: those of `likelihood_ratio`.

    Reference: Jiang et al., "One forward is enough for neural network training via
    likelihood ratio method", ICLR 2024, arXiv:2305.08960.

    Example:
        >>> tx = bpfree.ulr(loss_fn, num_samples=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    return likelihood_ratio(
        loss_fn,
        num_samples=num_samples,
        sigma=sigma,
        seed=seed,
        chunk_size=chunk_size,
        antithetic=True,
        baseline="none",
        layerwise=True,
        nodes=nodes,
        sharding=sharding,
        example_batch=example_batch,
    )
