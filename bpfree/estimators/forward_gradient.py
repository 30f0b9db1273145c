"""Forward gradients: directional derivatives in place of differences.

With D_z L the derivative of a loss along z, by forward-mode autodiff,

    weights   gradient = 1 / K sum_k (D_{z_k} mean loss) z_k              z on the params
    nodes     gradient = pull(1 / (B K) sum_k (D_{eps_k} L_b) eps_k)      eps on the nodes

No pass runs backward and there is no sigma: E[z z^T] = I makes both right on average.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from bpfree.choices import Noise, check_choice
from bpfree.estimators import perturbation, weight_noise
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate, Estimator
from bpfree.estimators.objective import mean_loss, of_losses
from bpfree.estimators.settings import Credit, make_settings
from bpfree.program import interpreter, lowrank, rewriting, tags
from bpfree.program.marking import param_paths
from bpfree.program.tangents import with_tangents
from bpfree.program.trace import LossFn, NodeFilter
from bpfree.sampling.loop import in_chunks, mean_of, sum_over_draws

Tangents = Literal["nodes", "weights"]


def forward_gradient(
    loss_fn: LossFn,
    *,
    tangents: Tangents = "nodes",
    num_samples: int = 32,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    nodes: NodeFilter = None,
    rank: int | None = None,
    noise: Noise = "rademacher",
    credit: Credit = None,
    sharding: NamedSharding | None = None,
    example_batch: Any = None,
) -> EstimatorTransformation:
    r"""Forward gradient: derivatives along random directions, times the directions.

    .. math::

        \hat g = \frac1K \sum_k (z_k^T \nabla \bar L)\, z_k \qquad\text{or}\qquad
        \hat g = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        \frac{1}{BK} \sum_k (D_{\varepsilon_k} L)\, \varepsilon_{l,k}

    with z a direction of all parameters (tangents="weights"), or eps one of all node
    values, each example with its own (tangents="nodes"). They are the limits at sigma = 0
    of `weight_perturbation` and `node_perturbation`, without their rounding.

    Contract: unbiased for the gradient of the mean loss. The loss must have a derivative
    all the way; nothing is carried backward, and memory does not depend on num_samples.

    Args:
      loss_fn: `(params, batch[, key]) -> losses (B,)`, `()`, or `(losses, aux)`; for
        tangents="nodes" with nodes in it, for "weights" marks are not needed, and what is
        held (`bpfree.hold`) moves.
      tangents: "nodes" or "weights".
      num_samples: K, directions.
      seed: int or typed PRNG key.
      chunk_size: directions evaluated side by side (on each device). Default 8, and 1 for
        dense weight tangents.
      nodes: predicate, or names with wildcards, as in `bpfree.node_perturbation`.
      rank: for "weights", None or r, as in `bpfree.weight_perturbation`.
      noise: "rademacher" or "gaussian".
      credit: for "nodes", as in `bpfree.node_perturbation`.
      sharding: NamedSharding whose first axis spreads the directions over devices.
      example_batch: batch or ShapeDtypeStructs; needed if loss_fn returns aux.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count or rank, an option of the other tangents; when
        traced, losses that are not (B,), and a parameter or node that moves the loss but
        from which no derivative reaches it.

    Reference: Baydin, Pearlmutter, Syme, Wood and Torr, "Gradients without
    backpropagation", arXiv:2202.08587; Ren, Kornblith, Liao and Hinton, "Scaling forward
    gradient with local losses", ICLR 2023, arXiv:2210.03310.

    Example:
        >>> tx = bpfree.forward_gradient(loss_fn, num_samples=4)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_choice("tangents", tangents, Tangents)
    check_choice("noise", noise, Noise)
    weight_noise.check_rank(rank)
    if tangents == "nodes" and rank is not None:
        raise ValueError("rank= is for tangents='weights'")
    if tangents == "weights" and (nodes is not None or credit is not None):
        raise ValueError("nodes= and credit= are for tangents='nodes'")
    if tangents == "weights":
        plan = weight_noise.PLANS[noise]
        layout = weight_noise.make_layout(plan, rank, num_samples, chunk_size, sharding)
        estimator = _of_weights(loss_fn, plan, rank, layout)
    else:
        settings = make_settings(
            loss_fn,
            plan=weight_noise.PLANS[noise],
            num_samples=num_samples,
            sigma=None,
            chunk_size=chunk_size,
            antithetic=False,
            nodes=nodes,
            sharding=sharding,
            derivative="jvp",
            credit=credit,
        )
        estimator = perturbation.make_estimator(settings)
    return transformation(estimator, loss_fn, seed, example_batch)


def _of_weights(loss_fn, plan, rank, layout) -> Estimator:
    function = with_tangents(loss_fn)

    def estimate(key, args, state, wanted) -> Estimate:
        params = args[0]

        mean = mean_loss(function, args)
        _, slope, (losses, aux) = jax.linearize(mean, params, has_aux=True)
        moved = weight_noise.moved(rewriting.to_jaxpr(loss_fn, args), args, wanted)
        _check_derivative(slope, params, moved)
        key = tags.fold_in_shards(key, losses)
        zeros = jax.tree.map(jnp.zeros_like, params)

        def draw(index):
            return weight_noise.draw(plan, rank, key, index, moved)

        def along(noise):
            tangent = weight_noise.added(zeros, noise, 1.0)
            return lowrank.evaluate(slope, tangent).astype(jnp.float32)

        along = interpreter.hoist(along, jax.eval_shape(draw, 0))

        def chunk(draws):
            noise = jax.vmap(draw)(draws)
            return weight_noise.credit(in_chunks(layout, along)(noise), noise), ()

        together = weight_noise.credited_together(layout, rank, moved)
        sums = sum_over_draws(chunk, together)[0]
        sums = mean_of(sums, layout.num_draws)
        gradient = weight_noise.as_gradient(params, tags.sum_shards(sums, losses))
        return Estimate(gradient, losses, aux)

    return of_losses(loss_fn, estimate)


def _check_derivative(slope, params, moved) -> None:
    """Raises ValueError if a parameter moves the loss but has no derivative."""
    used = rewriting.reads(slope, params)
    for path, reaches in zip(param_paths(params), used, strict=True):
        if path in moved and not reaches:
            raise ValueError(
                f"parameter {path!r} moves the loss, but no derivative reaches the loss "
                "from it (a threshold stands between), so its forward gradient would be "
                "zero; use weight_perturbation"
            )
