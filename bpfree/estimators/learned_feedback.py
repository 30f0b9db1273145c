"""Learned feedback: perturbation teaches a predictor of the gradient at the nodes.

For each example, with noise z_k at the hidden nodes, g_hat the prediction and

    r_k = (L_k - L_0) / sigma - sum_l z_{l,k} . g_hat_l        what it got wrong
    q_l = mean_k z_{l,k} r_k                                   unbiased for g_l - g_hat_l

the signal is (g_hat_l + shrinkage q_l) / B, and the predictor descends the misfit of its
model of how noise at one node moves the next, or mean r^2 / 2 (see `teachers`).
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import optax
from jax import lax
from jax.sharding import NamedSharding

from bpfree.choices import check_choice
from bpfree.estimators import (
    clean_pass,
    few_examples,
    predictable,
    predictors,
    teachers,
)
from bpfree.estimators.adam import adam
from bpfree.estimators.base import EstimatorTransformation, transformation
from bpfree.estimators.estimate import Estimate
from bpfree.estimators.faults import find_fault
from bpfree.estimators.objective import of_losses
from bpfree.estimators.settings import frozen
from bpfree.program import tags
from bpfree.program.blocks import check_blocks, warn_of_backpropagation
from bpfree.program.common import once
from bpfree.program.trace import (
    LossFn,
    NodeFilter,
    NodeTree,
    Program,
    arguments,
    name_hash,
    split_aux,
    trace,
)
from bpfree.sampling import scale
from bpfree.sampling.loop import laid_out, make_layout
from bpfree.sampling.noise import antithetic_plan, rademacher
from bpfree.sampling.seeds import as_key

Teacher = Literal["responses", "losses", "jvp"]


class FeedbackState(NamedTuple):
    """The predictor's weights, and the state of the optimiser that fits them."""

    weights: Any
    fit: Any


def learned_feedback(
    loss_fn: LossFn,
    *,
    example_batch: Any,
    num_samples: int = 1,
    sigma: scale.Number = 0.02,
    shrinkage: float = 0.0,
    predictor: predictors.Predictor | None = None,
    teacher: Teacher | None = None,
    fit: optax.GradientTransformation | None = None,
    fit_stride: int = 1,
    seed: int | jax.Array = 0,
    chunk_size: int | None = None,
    antithetic: bool = False,
    nodes: NodeFilter = None,
    sharding: NamedSharding | None = None,
) -> EstimatorTransformation:
    r"""Learned feedback: a predictor of the node gradients, fitted to perturbations.

    .. math::

        \hat g = \sum_l \Big(\frac{\partial y_l}{\partial\theta}\Big)^{\!T}
        \frac{1}{B} \Big[\hat g_l + \lambda\, \frac1K \sum_k z_{l,k} \Big(
        \frac{L_k - L_0}{\sigma} - \sum_m z_{m,k} \cdot \hat g_m\Big)\Big]

    with random signs z and the prediction g_hat_l of dL_b / dy_l from weights older than
    the draw. The last node is not perturbed: its gradient is the loss's own derivative.

    Contract: with shrinkage lambda = 1 the prediction is a control variate, and the
    estimate is unbiased for the gradient of the clean loss up to O(sigma^2), with any
    predictor. With lambda = 0 the estimate has the bias of the predictor and no noise of
    the draw. In between, both shrink linearly.

    Args:
      example_batch: a batch, or ShapeDtypeStructs of one: shapes of the predictor.
      num_samples: K, draws of the noise z in a step.
      sigma: scale of the noise in units of a node's value, a number or a schedule. By
        "jvp" with shrinkage 0 no pass is noisy, and nothing depends on it.
      shrinkage: lambda in [0, 1]. Where it is not 0, a smaller sigma, such as 0.002,
        keeps the curvature of the loss out of the correction.
      predictor: `bpfree.predictors.chained()` (the default: backprop through a second set
        of weights, which is learned) or `.direct(gate=..., per=...)` (a matrix from the
        error).
      teacher: what the predictor learns from; None is "jvp" for `chained()` and
        "responses" for `direct(...)`. "jvp": it descends the squared error of its guess
        of how noise at a node moves the next node, one number for each entry of a node,
        as forward-mode derivatives of the blocks tell; it needs the chained form.
        "responses": the same as the node values of noisy passes tell, or, if the
        predictor is direct, of how noise moves the last node. "losses": it descends the
        mean of r^2 / 2, one number for each noisy pass and example.
      fit: optimiser of the predictor; None is `optax.adam(1e-3)` for "losses" and
        otherwise that of the predictor: `optax.adam(1e-2, b1=0.5, b2=0.99)` for
        `chained()`.
      fit_stride: the predictor learns from every so-many-th example of the batch, which
        divides the cost of its teacher. More than 1 needs teacher "jvp" and examples on
        the first axis of the batch's arrays.
      antithetic: pairs z, -z; with "losses" the curvature then cancels.
      loss_fn, seed, chunk_size, nodes, sharding: as in `bpfree.node_perturbation`.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: unknown choice, bad count, sigma, shrinkage or fit_stride, one loss for
        the whole batch, a last node shared by the batch, losses without a derivative at
        it, a single node, a last node inside a loop, or nodes for which the predictor
        finds no derivative.

    Reference: the signal is a control variate on node perturbation. Fitting feedback
    weights to the noise of the next layer is the weight mirror of Akrout et al., "Deep
    learning without weight transport", NeurIPS 2019; to forward-mode derivatives, GrAPE
    (ICLR 2026).

    Example:
        >>> tx = bpfree.learned_feedback(loss_fn, example_batch=batch)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    scale.check_number(sigma)
    predictor = predictor or predictors.chained()
    if not isinstance(predictor, predictors.Predictor):
        raise ValueError(
            f"predictor={predictor!r} must be what bpfree.predictors.chained() or "
            "bpfree.predictors.direct(...) returns"
        )
    teacher = teacher or ("jvp" if predictor.models == "blocks" else "responses")
    check_choice("teacher", teacher, Teacher)
    if teacher == "jvp" and predictor.models != "blocks":
        raise ValueError(
            "teacher='jvp' needs a predictor with a model of the blocks, such as "
            "bpfree.predictors.chained(); with a direct one use teacher='responses'"
        )
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage={shrinkage} must be between 0 and 1")
    if fit_stride < 1 or fit_stride > 1 and teacher != "jvp":
        raise ValueError(f"fit_stride={fit_stride} must be 1, or more with teacher='jvp'")
    fit = fit or (adam(1e-3) if teacher == "losses" else predictor.fit())
    if not hasattr(fit, "update"):
        raise ValueError(f"fit={fit!r} must be an optimiser, such as optax.adam(1e-3)")
    nodes = frozen(nodes)
    plan = rademacher()
    plan = antithetic_plan(plan) if antithetic else plan
    layout = make_layout(plan, num_samples, chunk_size, sharding)

    noisy_passes = shrinkage > 0 or teacher != "jvp"
    # Without a residual the losses of noisy passes are not read, so examples may meet.
    meet = shrinkage == 0 and teacher != "losses" and predictor.models == "blocks"

    def traced(args) -> Program:
        params, batch, key = (*args, None)[:3]
        program = trace(loss_fn, params, batch, key, nodes)
        return program if meet else program.shared()

    def few_values(program: Program, args, values):
        clean = clean_pass.Clean(program, args, values)
        return few_examples.every(clean, fit_stride, traced).values

    def init(params) -> FeedbackState:
        def shapes(*args):
            return clean_pass.run(traced(args), args)[0].values

        key = jax.random.fold_in(as_key(seed), name_hash("predictor"))
        args = arguments(loss_fn, params, example_batch, key)
        values = jax.eval_shape(shapes, *args)
        program = traced(args)
        clean = clean_pass.Clean(program, args, values)
        if noisy_passes:
            scale.check_resolution(sigma, clean.program)
        predictable.check(clean, predictor)
        if fit_stride > 1:
            jax.eval_shape(partial(few_values, program), args, values)
        weights = predictor.init(key, clean)
        return FeedbackState(weights, fit.init(weights))

    def estimate(key, args, state, wanted) -> Estimate:
        clean, out, pull = clean_pass.run(traced(args), args)
        found = check_blocks(clean.program, clean.args, wanted)
        warn_of_backpropagation(found, nodes)
        losses, aux = split_aux(out)
        older = state.inner.weights
        predicted = predictable.predicted(predictor, older, clean)
        noisy = clean.program.holding(clean.values)
        hidden = {site.name for site in clean_pass.hidden(clean.program)}
        step = teachers.Step(
            clean,
            losses,
            laid_out(noisy, layout, hidden),
            predicted,
            tags.fold_in_shards(key, losses),
            scale.scale_at(sigma, state.count),
            plan,
            layout,
        )

        residual: NodeTree = {}
        changes: NodeTree = {}
        if teacher == "losses":
            residual, changes = teachers.residual_of(step)
            miss = teachers.filled(residual, predicted, -1 / losses.size)
            slope = jax.vjp(lambda w: predictor.predict(w, clean), older)[1](miss)[0]
        elif teacher == "jvp":
            if shrinkage > 0:
                residual, changes = teachers.residual_of(step)
            few = step
            if fit_stride > 1:
                few = step._replace(clean=few_examples.every(clean, fit_stride, traced))
            slope = teachers.misfit_of_derivatives(few, predictor, older)
        else:
            (residual, changes), slope = teachers.residual_and_misfit(
                step, predictor, older, residual=shrinkage > 0
            )
        moved, fit_state = fit.update(slope, state.inner.fit, older)
        inner = FeedbackState(optax.apply_updates(older, moved), fit_state)
        residual = residual if shrinkage > 0 else {}
        signal = teachers.filled(
            residual, predicted, shrinkage / losses.size, 1 / losses.size
        )
        sizes = scale.sizes_at(clean.program.sites, clean.values)
        scales = {s.name: step.sigma for s in step.sites} if noisy_passes else {}
        changes = tags.sum_shards(changes, losses, lax.pmean)
        fault = find_fault(clean.program, sizes, scales, losses, changes)
        return Estimate(pull(signal), losses, aux, fault, inner)

    def shared(key, args, state, wanted) -> Estimate:
        # Clean pass, prediction and responses share the derivatives of activations.
        return once(partial(estimate, wanted=wanted))(key, args, state)

    estimator = of_losses(loss_fn, shared, init)
    return transformation(estimator, loss_fn, seed, example_batch)
