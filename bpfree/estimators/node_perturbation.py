"""Node perturbation (NP)."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from bpfree.choices import BaselineName, Derivative, Noise, check_choice
from bpfree.estimators import perturbation, redrawn
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.settings import Credit, Sigma, make_settings
from bpfree.program.trace import LossFn, NodeFilter
from bpfree.sampling.baselines import Baseline, Table
from bpfree.sampling.noise import gaussian, rademacher

NOISE = {"rademacher": rademacher, "gaussian": gaussian}


def node_perturbation(
    loss_fn: LossFn,
    *,
    num_samples: int | Mapping[str, int] = 32,
    sigma: Sigma = 0.01,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    baseline: BaselineName | Table | Baseline = "clean",
    nodes: NodeFilter = None,
    noise: Noise = "rademacher",
    credit: Credit = None,
    layerwise: bool = False,
    derivative: Derivative = "finite_difference",
    redraw: bool = False,
    hold_statistics: bool = False,
    hold_stop_gradient: bool = True,
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Node perturbation: credit each node with the change of loss its noise made.

    .. math::

        \hat g = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        \frac{1}{BK\sigma} \sum_{k=1}^{K} (L_k - L_0)\, \varepsilon_{l,k},
        \qquad \varepsilon \sim \text{Rademacher or } N(0, I)

    All nodes are perturbed at once, every example with its own noise and its own loss; or
    layer-wise, one node after the other, each with its own samples.

    Contract: aligned. The expectation is the gradient of the mean clean loss with an
    error O(sigma^2), or none with derivative="jvp"; the variance falls as 1 / (B K).

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`, with
        nodes in it (`bpfree.node`, `bpfree.supervised`).
      num_samples: K, noisy forward passes of the batch; layer-wise, of each node, and
        {node: K} gives every node its own.
      sigma: standard deviation of the noise in units of the node's value: a number, or a
        schedule of the step. Below half the spacing of a node's values (bfloat16: 0.004
        of their size) rounding loses the noise: an error, or a fault in the state.
      seed: int or typed PRNG key.
      chunk_size: samples evaluated side by side (on each device); sets memory and speed,
        not the result. Default 8. With 1, one sample runs after the other and without
        `vmap`: what ordered callbacks (a simulator with hidden state) need.
      antithetic: use pairs eps, -eps of the same example; num_samples must be even. The
        signal is then (L_+ - L_-) / (2 sigma) eps.
      baseline: "clean" (L_0), "leave_one_out" (mean loss of the other draws), "batch"
        (mean noisy loss of the other examples in the same sample) or "none";
        "standardise" (mean 0 and variance 1 over the samples) and "centred_ranks" (ranks
        over the samples, from -1/2 to 1/2) keep a direction, of no known scale; or a
        function of the table of all L_k - L_0, (draws, samples of a draw, *loss shape),
        to the weights of the noise.
      nodes: predicate on names, or names with wildcards ("layers/*"); the rest are no
        nodes for this estimator.
      noise: "rademacher" (32 signs to a random word) or "gaussian".
      credit: rule, or mapping from node names to rules, that says which losses answer
        for a node: `bpfree.causal`, `bpfree.within_hops`, or a function as `credit.Rule`.
        None: all losses of the example. With it losses may be (B, T), one for each time
        step; the objective is the mean over both.
      layerwise: perturb one node at a time. A sample then answers for its node alone, and
        evaluates only what is downstream of it (all of a loop, for a node inside one).
        Samples of all nodes share a chunk, of which each node has at least one.
      derivative: "finite_difference" (L_k - L_0 of a noisy pass) or "jvp": its first
        order in sigma, exact, by forward-mode autodiff along the noise, for programs that
        have a derivative; sigma is then not used.
      redraw: inside loops, draw the noise where each step needs it, once more for the
        signals, and keep none of it: memory does not hold a node's values over all steps.
        Costs a clean pass and the second draw.
      hold_statistics: statistics of the batch (those of batch normalisation, say: means
        over the batch of what noise reaches) are held at their clean values in noisy
        passes, and a quarter as many further passes, in which the statistics alone move,
        say what each example's share in them is worth. With True these passes are left
        out: an estimate with less variance, of the gradient with the statistics
        constant, which is not that of the loss. A node stands after the norm of its own
        product, so that only later norms are constants: on the net of
        `configs/cifar10_convnet.py` the cosine of the two gradients is .79 to 1.00,
        kernel by kernel (`scripts/batch_statistics.py --limits=cifar10_jpeg`).
      hold_stop_gradient: what stands under `jax.lax.stop_gradient` keeps its clean value
        in noisy passes, so that the estimate is of what autodiff gives. False lets noise
        through, by which the differences see the true function of a straight-through
        unit, `x + stop_gradient(round(x) - x)`.
      sharding: NamedSharding whose first axis spreads the samples over devices.
      example_batch: batch or ShapeDtypeStructs; needed if loss_fn returns aux.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count or sigma, no nodes, losses that are not (B,);
        counts per node that are not layer-wise or name other nodes; "jvp" with another
        baseline or pairs, or where no derivative reaches the losses; `redraw` with a
        baseline of all losses, "jvp", `layerwise` or `sharding`; baseline="batch" with
        `credit`, a node whose noise the batch shares, or a batch of fewer than two
        examples.

    Reference: Werfel, Xie and Seung, "Learning curves for stochastic gradient descent in
    linear feedforward networks", Neural Computation 17 (2005); Hiratani et al., "On the
    stability and scalability of node perturbation learning", NeurIPS 2022.

    Example:
        >>> tx = bpfree.node_perturbation(loss_fn, num_samples=4, layerwise=True)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_choice("noise", noise, Noise)
    settings = make_settings(
        loss_fn,
        plan=NOISE[noise](),
        num_samples=num_samples,
        sigma=sigma,
        chunk_size=chunk_size,
        antithetic=antithetic,
        baseline=baseline,
        nodes=nodes,
        sharding=sharding,
        credit=credit,
        layerwise=layerwise,
        derivative=derivative,
        hold_statistics=hold_statistics,
        hold_stop_gradient=hold_stop_gradient,
    )
    make = redrawn.make_estimator if redraw else perturbation.make_estimator
    return transformation(make(settings), loss_fn, seed, example_batch)
