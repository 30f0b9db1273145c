"""Activity-based node perturbation (ANP)."""

from typing import Any, Literal

import jax
from jax.sharding import NamedSharding

from bpfree.choices import Derivative, Noise, check_choice
from bpfree.estimators import normalized, perturbation, two_pass
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.node_perturbation import NOISE
from bpfree.estimators.settings import Sigma, make_settings
from bpfree.program.trace import LossFn, NodeFilter

Reference = Literal["clean", "noisy"]


def activity_node_perturbation(
    loss_fn: LossFn,
    *,
    num_samples: int = 32,
    sigma: Sigma | None = 0.01,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    nodes: NodeFilter = None,
    noise: Noise = "gaussian",
    reference: Reference = "clean",
    norm: normalized.Norm = "global",
    derivative: Derivative = "finite_difference",
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Activity-based node perturbation: credit a node with what it did, not its noise.

    .. math::

        \hat g = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        \frac{1}{BK} \sum_{k=1}^{K} N\, \delta L_k\,
        \frac{\delta a_{l,k}}{\lVert\delta a_k\rVert^2}

    All nodes are noisy at once. da_l is the whole change of node l: its own noise and
    what arrived from the nodes before. ||da||^2 sums over all nodes of the example, N is
    the number of their values. No noise needs to be known: it is enough to see the nodes.

    Contract: descent. In a chain of layers the signal is the gradient times the
    covariance of the node's own change, E[dL da_l] = Cov(da_l) g_l + O(sigma^3): it never
    points uphill, but it is no gradient except at the first node. The global norm makes
    late layers too large and early ones too small (Adam hides it), `norm="per_layer"`
    less so. Where a path bypasses a node (skip connections), nothing is promised.

    Args:
      num_samples: K, noisy passes of the batch; pairs of them with reference="noisy".
      sigma: standard deviation of the noise, a number or a schedule of the step; None: no
        noise is injected, the system's own must do (reference="noisy" only).
      reference: what a noisy pass is compared with. "clean": one clean pass. "noisy":
        another noisy pass, for systems whose noise cannot be read or switched off;
        `loss_fn(params, batch, key)` gets a new key in every pass, no clean pass exists,
        and each pair's signal meets the inputs of the pair's first pass (a weight
        product for every pair). The value is then the mean loss of the first passes, aux
        that of the very first; memory grows by an aux for every pair.
      norm: "global", or "per_layer": n_l da_l / ||da_l||^2 for each node.
      loss_fn, seed, chunk_size, antithetic, nodes, noise, derivative, sharding: as in
        `bpfree.node_perturbation`.
      example_batch: likewise.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count or sigma, no nodes, losses that are not (B,);
        "jvp" with pairs, or where there is no derivative; reference="noisy" with pairs or
        "jvp", or with sigma=None and a loss function that takes no key.

    Reference: Dalm, van Gerven and Ahmad, "Effective learning with node perturbation in
    multi-layer neural networks", arXiv:2310.00965; two noisy passes: Koenders et al.,
    arXiv:2412.12783.

    Example:
        >>> tx = bpfree.activity_node_perturbation(loss_fn, num_samples=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_choice("noise", noise, Noise)
    check_choice("reference", reference, Reference)
    check_choice("norm", norm, normalized.Norm)
    noisy = reference == "noisy"
    if noisy:
        two_pass.check(loss_fn, sigma, antithetic, derivative)
    elif sigma is None:
        raise ValueError("sigma=None injects no noise, which needs reference='noisy'")
    settings = make_settings(
        loss_fn,
        plan=NOISE[noise](),
        num_samples=num_samples,
        sigma=sigma,
        chunk_size=chunk_size,
        antithetic=antithetic,
        nodes=nodes,
        sharding=sharding,
        derivative=derivative,
        own_noise=noisy,
    )

    def signals(run):
        return normalized.activity_signals(run, norm)

    if noisy:
        estimator = two_pass.make_estimator(settings, norm)
    else:
        estimator = perturbation.make_estimator(settings, signals=signals)
    return transformation(estimator, loss_fn, seed, example_batch)
