"""Approximated likelihood ratio (ALR): one bit in place of a real number."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from bpfree.choices import check_choice
from bpfree.estimators import perturbation
from bpfree.estimators.base import EstimatorTransformation
from bpfree.estimators.settings import Sigma, find_baseline
from bpfree.program.trace import LossFn, NodeFilter
from bpfree.sampling.baselines import NONE, Baseline, Table
from bpfree.sampling.noise import Plan, gaussian

_SCALE = (jnp.pi / 2) ** 0.5  # 1 / E|eps| of a standard normal


def _sign_plan() -> Plan:
    """Normal noise credited by its sign; E[score eps] = 1 still."""
    return gaussian()._replace(score=lambda noise: _SCALE * jnp.sign(noise))


Encoding = Literal["noise", "loss", "product"]
# What is a sign -> (plan, whether the centred losses are signs).
_ENCODINGS = {
    "noise": (_sign_plan, False),
    "loss": (gaussian, True),
    "product": (_sign_plan, True),
}

BaselineChoice = (
    Literal["clean", "leave_one_out", "batch", "standardise", "centred_ranks"]
    | Table
    | Baseline
)


def approximated_likelihood_ratio(
    loss_fn: LossFn,
    *,
    encode: Encoding = "noise",
    num_samples: int = 32,
    sigma: Sigma = 0.05,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: BaselineChoice = "clean",
    nodes: NodeFilter = None,
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Likelihood ratio with signs in place of the terms of its product.

    .. math::

        \hat g = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        \frac{1}{BK\sigma} \sum_{k=1}^{K} (L_k - c)\,
        \sqrt{\pi/2}\;\mathrm{sign}(\varepsilon_{l,k}),
        \qquad \varepsilon \sim N(0, I)

    for encode="noise"; the others replace further factors by their signs:

    * "noise": sign(eps), one bit per entry. To first order in sigma the expectation is
      that of the likelihood ratio, since E[sign(eps) eps] = sqrt(2/pi); the variance
      grows by pi / 2: cosine [1 + (pi/2) (d + 1) / (K R)]^(-1/2).
    * "loss": sign(L_k - c) eps, one bit per sample and example.
    * "product": sign((L_k - c) eps), one bit per entry and nothing else.

    Signals meet the clean inputs of the layers. The loss is always centred: without a
    baseline a positive loss would leave sign(L eps) = sign(eps), which says nothing.
    Noise is made from its key where it is used, so the bits save no memory here; they
    are what a device with one-bit channels would have to carry.

    Contract: "noise" is aligned (expectation grad L + O(sigma^2)). The others lose the
    size of each example's gradient: a descent direction, measured, of no known scale.

    Args:
      encode: "noise", "loss" or "product".
      baseline: as in `bpfree.node_perturbation`, but "none".
      loss_fn, num_samples, sigma, seed, chunk_size, antithetic, nodes, sharding: as in
        `bpfree.likelihood_ratio`.
      example_batch: likewise.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, baseline="none", bad count or sigma, no nodes, losses
        that are not (B,).

    Reference: Zhang, Jiang, Liu, Liang, Peng and Xu, "Approximated Likelihood Ratio: A
    Forward-Only and Parallel Framework for Boosting Neural Network Training" (2024),
    arXiv:2403.12320. Its abstract does not say which factor is encoded; these are
    the candidates.

    Example:
        >>> tx = bpfree.approximated_likelihood_ratio(loss_fn, num_samples=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_choice("encode", encode, Encoding)
    compared = find_baseline(baseline)
    if compared is NONE:
        raise ValueError(
            "signs need a centred loss: choose baseline='clean', 'leave_one_out' or "
            "'batch'"
        )
    plan, of_losses = _ENCODINGS[encode]
    if of_losses:
        centred = compared.weights
        compared = compared._replace(weights=lambda table: jnp.sign(centred(table)))
    return perturbation.build(
        loss_fn,
        plan=plan(),
        num_samples=num_samples,
        sigma=sigma,
        chunk_size=chunk_size,
        antithetic=antithetic,
        baseline=compared,
        nodes=nodes,
        sharding=sharding,
        seed=seed,
        example_batch=example_batch,
    )
