"""Different estimators for different parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bpfree.estimators.base import EstimatorState, EstimatorTransformation, transformation
from bpfree.estimators.estimate import NO_FAULT, Estimate, Estimator


def combine(
    estimators: Mapping[str, EstimatorTransformation],
    labels: Any | Callable[[Any], Any],
    *,
    seed: int | jax.Array = 0,
    example_batch: Any = None,
) -> EstimatorTransformation:
    """Each parameter takes its gradient from the estimator that its label names.

    `g_p = estimators[label(p)](p)` for every leaf p. Combine estimators whose `nodes=`
    perturb only their own layers: a signal then answers for fewer nodes, and its variance
    falls. (`optax.partition` cannot do this: it hands its parts masked parameters.)

    All parts see the same key, so dropout masks agree, and under `jit` XLA merges their
    clean passes into one and drops the gradients that no label asks for.

    Contract: each leaf has the contract of its estimator.

    Args:
      estimators: label -> estimator, all of one and the same loss function.
      labels: tree of labels with the structure of params or a prefix of it, or a function
        from params to one (as in `optax.partition`).
      seed: int or typed PRNG key; the seeds of the parts are not used.
      example_batch: batch or ShapeDtypeStructs; needed if the loss function returns aux.

    Returns:
      An optax transformation; pass `batch=` to `update`.

    Raises:
      ValueError: no estimators, different loss functions, unknown or unused labels.

    Example:
        >>> parts = {
        ...     "np": bpfree.node_perturbation(loss_fn, num_samples=4, nodes=["hidden"]),
        ...     "bp": bpfree.backprop(loss_fn),
        ... }
        >>> tx = bpfree.combine(parts, labels={"w1": "np", "w2": "bp"})
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, gradient)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    if not estimators:
        raise ValueError("combine needs at least one estimator")
    for label, tx in estimators.items():
        if not isinstance(tx, EstimatorTransformation):
            raise TypeError(
                f"combine takes estimators, and {label!r} is a {type(tx).__name__}; "
                "chain other transformations after combine"
            )
    loss_fn = next(iter(estimators.values())).loss_fn
    if any(tx.loss_fn != loss_fn for tx in estimators.values()):
        raise ValueError(
            "combine needs estimators of one loss function, so that they share its clean "
            "pass; pass the same object to each of them"
        )

    def init(params):
        _label_leaves(labels, params, estimators)
        return {label: tx.estimator.init(params) for label, tx in estimators.items()}

    def estimate(key, params, batch, state: EstimatorState, wanted=None) -> Estimate:
        owners = _label_leaves(labels, params, estimators)
        asked = [True] * len(owners) if wanted is None else wanted

        def of_label(label, tx) -> Estimate:
            pairs = zip(asked, owners, strict=True)
            mine = [ask and owner == label for ask, owner in pairs]
            own = state._replace(inner=state.inner[label])
            return tx.estimator.estimate(key, params, batch, own, mine)

        parts = {label: of_label(label, tx) for label, tx in estimators.items()}
        leaves = {label: jax.tree.leaves(part.gradient) for label, part in parts.items()}
        chosen = [leaves[label][i] for i, label in enumerate(owners)]
        fault = jnp.int32(NO_FAULT)
        for part in reversed(parts.values()):
            fault = jnp.where(part.fault != NO_FAULT, part.fault, fault)
        first = next(iter(parts.values()))
        return Estimate(
            jax.tree.unflatten(jax.tree.structure(params), chosen),
            first.value,
            first.aux,
            fault,
            {label: part.state for label, part in parts.items()},
        )

    return transformation(Estimator(init, estimate), loss_fn, seed, example_batch)


def _label_leaves(labels, params, estimators) -> list[str]:
    """The label of every leaf of params, in order."""
    tree = labels(params) if callable(labels) else labels
    spread = jax.tree.map(
        lambda label, sub: jax.tree.map(lambda _: label, sub), tree, params
    )
    leaves = jax.tree.leaves(spread)
    if set(leaves) != set(estimators):
        raise ValueError(
            f"the labels {sorted(map(str, set(leaves)))} must be the estimators' names, "
            f"all of them: {sorted(estimators)}"
        )
    return leaves
