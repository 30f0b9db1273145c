"""The likelihood-ratio (LR) method."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import optax
from jax.sharding import NamedSharding

from bpfree.choices import BaselineName, Pairing, check_choice
from bpfree.estimators import perturbation
from bpfree.estimators.base import EstimatorTransformation
from bpfree.estimators.settings import Credit, Sigma
from bpfree.program.trace import LossFn, NodeFilter
from bpfree.sampling.baselines import Baseline, Table
from bpfree.sampling.distributions import group_of, laplace, orthogonal, sobol, student_t
from bpfree.sampling.loop import whole_number
from bpfree.sampling.noise import Plan, gaussian

_SHARE = 8

Density = Literal[
    "gaussian", "shared_gaussian", "laplace", "student_t", "sobol", "orthogonal"
]
# Independent samples -> plan.
NOISE: dict[str, Callable[[int], Plan]] = {
    "gaussian": lambda draws: gaussian(),
    "shared_gaussian": lambda draws: gaussian(math.gcd(draws, _SHARE)),
    "laplace": lambda draws: laplace(),
    "student_t": lambda draws: student_t(),
    "sobol": lambda draws: sobol(group_of("sobol", draws)),
    "orthogonal": lambda draws: orthogonal(group_of("orthogonal", draws)),
}


def likelihood_ratio(
    loss_fn: LossFn,
    *,
    num_samples: int | Mapping[str, int] = 32,
    sigma: Sigma = 0.05,
    sigma_optimizer: optax.GradientTransformation | None = None,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: BaselineName | Table | Baseline = "clean",
    pairing: Pairing = "noisy",
    nodes: NodeFilter = None,
    noise: Density = "gaussian",
    credit: Credit = None,
    layerwise: bool = False,
    hold_statistics: bool = False,
    hold_stop_gradient: bool = True,
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

    for noise eps of density f, mean 0 and variance 1, and any baseline c that does not
    depend on eps. The estimate is the mean over K samples and the batch. No derivative of
    the loss or of anything after a node is needed: thresholds and the 0-1 loss train,
    with sigma about the distance of a node's values from the threshold.

    Contract: with pairing="noisy" (the default; Jacobians at each sample's own noisy
    inputs) unbiased for the gradient of the *smoothed* loss J_sigma, at any sigma. With
    pairing="clean" (Jacobians at the clean inputs; about half the cost) aligned: it is
    node perturbation with Gaussian noise, expectation grad L + O(sigma^2). Layer-wise,
    the block that ends at node l gets the gradient of the loss smoothed at node l alone,
    and the block after the last node that of the mean of these losses.

    One forward pass: pairing="noisy" with baseline="none" or "batch" needs no clean pass
    and makes none, so that num_samples=1 is a single pass; `bpfree.value` is the mean
    noisy loss then. (Losses with aux, or with statistics of the batch, still take a
    clean pass.) At small sigma an estimate without a baseline is all variance.

    Args:
      sigma: standard deviation of the noise in units of the node's value: a number, a
        schedule of the step, or a mapping from the name of every node to one of these.
      sigma_optimizer: learn log sigma, one for each channel (last axis) of each node,
        with this optimiser (`optax.adam(1e-3)`), from `sigma` on: descends
        dJ / d log sigma = E[(L - c) sum (s(eps) eps - 1)]. Needs example_batch.
      baseline: "clean" (L_0 of the example), "leave_one_out" (mean loss of the other
        draws), "batch" (mean noisy loss of the other examples in the same sample) or
        "none", all of them unbiased; or a function, as in `bpfree.node_perturbation`.
      pairing: "noisy" or "clean", the inputs of a layer that a sample's signal meets.
      noise: its density, of variance 1. "gaussian": s = eps. "laplace": s = sqrt(2)
        sign(eps). "student_t" (5 degrees of freedom): s = 6 eps / (3 + eps^2). Three
        more are Gaussian too, every sample by itself, so that the contract is unchanged,
        and coupled in groups of G (the largest power of two, at most 64, that divides the
        independent samples). "shared_gaussian" (G <= 8): magnitudes drawn once, fresh
        signs; random numbers cost about an eighth. "sobol": points of Sobol's sequence,
        scrambled for each example and node. "orthogonal": orthogonal directions per
        example and node (sets of d where a node has d < G entries; a QR decomposition
        per example). Both gain only where G is not small against the number of all
        perturbed entries of an example.
      loss_fn, num_samples, seed, chunk_size, antithetic, nodes, layerwise, credit: as in
        `bpfree.node_perturbation`.
      hold_statistics: likewise. A loss with statistics of the batch is smoothed with
        these held, and what they add is of first order in sigma.
      hold_stop_gradient: likewise.
      sharding, example_batch: likewise. Coupled groups are evaluated side by side, even
        where chunk_size is smaller.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count or sigma, no nodes, losses that are not (B,);
        a sigma that the precision in use cannot resolve; more than 21201 entries of a
        node per example with noise="sobol".

    Reference: Peng, Xiao, Heidergott, Hong and Lam, "A new likelihood ratio method for
    training artificial neural networks", INFORMS Journal on Computing (2021); Jiang et
    al., "One forward is enough for neural network training via likelihood ratio method",
    ICLR 2024, arXiv:2305.08960.

    Example:
        >>> tx = bpfree.likelihood_ratio(loss_fn, num_samples=4, sigma=0.5)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_choice("noise", noise, Density)
    check_choice("pairing", pairing, Pairing)
    counts = num_samples.values() if isinstance(num_samples, Mapping) else [num_samples]
    whole = [whole_number("num_samples", count) for count in counts]
    draws = math.gcd(*(count // 2 if antithetic else count for count in whole))
    return perturbation.build(
        loss_fn,
        plan=NOISE[noise](draws),
        num_samples=num_samples,
        sigma=sigma,
        sigma_optimizer=sigma_optimizer,
        chunk_size=chunk_size,
        antithetic=antithetic,
        baseline=baseline,
        noisy=pairing == "noisy",
        nodes=nodes,
        sharding=sharding,
        credit=credit,
        layerwise=layerwise,
        hold_statistics=hold_statistics,
        hold_stop_gradient=hold_stop_gradient,
        seed=seed,
        example_batch=example_batch,
    )
