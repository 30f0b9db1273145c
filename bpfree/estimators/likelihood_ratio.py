"""The likelihood-ratio (LR) method."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from bpfree import sampling
from bpfree.estimators import perturbation
from bpfree.program import LossFn, NodeFilter
from bpfree.transform import EstimatorTransformation


def likelihood_ratio(
    loss_fn: LossFn,
    *,
    num_samples: int = 32,
    sigma: perturbation.Sigma = 0.05,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: str = "clean",
    pairing: str = "noisy",
    nodes: NodeFilter = None,
    noise: str = "gaussian",
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Likelihood ratio: the score-function gradient of a network with noisy nodes.

    With noise of scale sigma at every node the loss is a function of random node values
    v_l = y_l + sigma eps_l, and the derivative falls on their density:

    .. math::

        \nabla_\theta J_\sigma = E\Big[\sum_l
        \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T} (L - c)\,
        \frac{s(\varepsilon_l)}{\sigma}\Big], \qquad
        J_\sigma = E[L], \quad s = -\nabla\log f

    with s(eps) = eps for unit Gaussian noise and any baseline c that does not depend on
    eps. The estimate is the mean over K samples and the batch. No derivative of the loss
    or of anything behind a node is needed: thresholds and the 0-1 loss train.

    Contract: with pairing="noisy" (the default; Jacobians at each sample's own noisy
    inputs) unbiased for the gradient of the *smoothed* loss J_sigma, at any sigma. With
    pairing="clean" (Jacobians at the clean inputs; about half the cost) aligned: it is
    node perturbation with Gaussian noise, expectation grad L + O(sigma^2).

    Args:
      noise: "gaussian" draws every normal afresh. "shared_gaussian" draws the magnitudes
        once for 8 samples (or as many of them as divide the draws) and fresh signs for
        each, 32 to a word: every sample stays exactly normal, so expectation and
        contract are unchanged; random numbers cost about an eighth.
      loss_fn, num_samples, sigma, seed, chunk_size, antithetic, baseline, nodes,
        sharding, example_batch: as in `bpfree.node_perturbation`.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count or sigma, no nodes, losses that are not (B,).

    Reference: Peng, Xiao, Heidergott, Hong and Lam, "A new likelihood ratio method for
    training artificial neural networks", INFORMS Journal on Computing (2021); Jiang et
    al., "One forward is enough for neural network training via likelihood ratio method",
    ICLR 2024, arXiv:2305.08960.
    """
    perturbation.check_choice("noise", noise, ("gaussian", "shared_gaussian"))
    draws = num_samples // 2 if antithetic else num_samples
    share = math.gcd(draws, _SHARE) if noise == "shared_gaussian" else 1
    return perturbation.build(
        loss_fn,
        plan=sampling.gaussian(share),
        num_samples=num_samples,
        sigma=sigma,
        chunk_size=chunk_size,
        antithetic=antithetic,
        baseline=baseline,
        pairing=pairing,
        nodes=nodes,
        sharding=sharding,
        seed=seed,
        example_batch=example_batch,
    )


_SHARE = 8
