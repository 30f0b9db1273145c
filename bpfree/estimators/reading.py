"""What an optimiser's state says: the loss, aux, metrics and the first fault."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bpfree.estimators import estimate
from bpfree.estimators.base import EstimatorState
from bpfree.program.marking import param_paths
from bpfree.program.trace import LossFn, site_names, takes_key
from bpfree.sampling.scale import smallest_at


def find_states(state: Any) -> dict[str, EstimatorState]:
    """Every EstimatorState in an optimiser state, by its path."""
    ours = lambda node: isinstance(node, EstimatorState)  # noqa: E731
    found = jax.tree.leaves_with_path(state, is_leaf=ours)
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): leaf for path, leaf in found if ours(leaf)}


def find_state(state: Any, name: str | None = None) -> EstimatorState:
    """The one estimator state of a chain, or the one whose path contains `name`.

    Raises ValueError when there is none, or several that `name` does not tell apart.
    """
    states = find_states(state)
    every = name is None
    chosen = [s for path, s in states.items() if every or name in path.split("/")]
    if len(chosen) == 1:
        return chosen[0]
    if not states:
        raise ValueError("this optimiser state holds no bpfree estimator")
    raise ValueError(
        f"{len(chosen)} estimators match name={name!r}; pass one name out of the paths "
        f"{sorted(states)}"
    )


def value(state: Any, name: str | None = None) -> jax.Array:
    """Mean clean loss of the last step, float32 (), infinite before the first one.

    Args:
      state: of an optax chain with one bpfree estimator in it, or of the estimator.
      name: part of the path to the estimator, where there are several ("0", "lr").

    Raises:
      ValueError: no estimator in the state, or several that `name` does not tell apart.

    Example:
        >>> tx = optax.chain(bpfree.backprop(loss_fn), optax.sgd(0.1))
        >>> state = tx.init(params)
        >>> float(bpfree.value(state))
        inf
        >>> updates, state = tx.update(zeros, state, params, batch=batch)
        >>> bool(jnp.allclose(bpfree.value(state), loss_fn(params, batch).mean()))
        True
    """
    return find_state(state, name).value


def aux(state: Any, name: str | None = None) -> Any:
    """What the loss function returned as aux in the last clean pass, or None.

    Args:
      state, name: as in `bpfree.value`.

    Raises:
      ValueError: as `bpfree.value`.

    Example:
        >>> def with_aux(params, batch):
        ...     return loss_fn(params, batch), {"size": len(batch["x"])}
        >>> tx = bpfree.backprop(with_aux, example_batch=batch)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> int(bpfree.aux(state)["size"])
        5
    """
    return find_state(state, name).aux


def metrics(state: Any, name: str | None = None) -> dict[str, jax.Array]:
    """Measurements of the estimator, and of the links to its right, in the last step.

    Args:
      state, name: as in `bpfree.value`.

    Returns:
      {name: float32 ()}; empty for most estimators.

    Raises:
      ValueError: as `bpfree.value`.

    Example:
        >>> tx = optax.chain(bpfree.backprop(loss_fn), optax.sgd(0.1))
        >>> updates, state = tx.update(zeros, tx.init(params), params, batch=batch)
        >>> bpfree.metrics(state)
        {}
    """
    links = [link.metrics for link in _links(state) if hasattr(link, "metrics")]
    own = getattr(find_state(state, name).inner, "metrics", {})
    return {k: v for found in (own, *links) for k, v in found.items()}


def _links(state: Any) -> list[Any]:
    """The states of a chain that have metrics or faults, and other leaves."""

    def reports(node):
        has_report = hasattr(node, "metrics") or hasattr(node, "fault_message")
        return has_report or isinstance(node, EstimatorState)

    return jax.tree.leaves(state, is_leaf=reports)


def fault_message(
    state: Any, loss_fn: LossFn, params, batch, name: str | None = None
) -> str | None:
    """What went wrong first, in words, or None. Reads a few numbers from the device.

    The state keeps the first step whose numbers were bad: a node, loss or gradient that
    is not finite, a sigma that is not positive or that rounding swallows, losses whose
    differences are rounding errors. Numbers that have grown since the first step are
    named as the cause, with the largest parameter, and not sigma. Faults of the links to
    the right of the estimator come after its own.

    Args:
      state, name: as in `bpfree.value`.
      loss_fn, params, batch: of the estimator; they give the node its name.

    Raises:
      ValueError: as `bpfree.value`.

    Example:
        >>> tx = optax.chain(bpfree.backprop(loss_fn), optax.sgd(0.1))
        >>> updates, state = tx.update(zeros, tx.init(params), params, batch=batch)
        >>> print(bpfree.fault_message(state, loss_fn, params, batch))
        None
        >>> bad = {"x": jnp.full((5, 3), jnp.inf), "t": batch["t"]}
        >>> updates, state = tx.update(zeros, tx.init(params), params, batch=bad)
        >>> bpfree.fault_message(state, loss_fn, params, bad)[:7]
        'step 0:'
    """
    fault = find_state(state, name).fault
    step, code = int(fault.step), int(fault.code)
    if step < 0:
        found = (s.fault_message() for s in _links(state) if hasattr(s, "fault_message"))
        return next(filter(None, found), None)
    what, remedy = _cause(step, code, loss_fn, params, batch)
    return f"step {step}: {what}. {remedy}."


_RATE = "Lower the learning rate or clip the update (optax.clip_by_global_norm)"


def _cause(step: int, code: int, loss_fn, params, batch) -> tuple[str, str]:
    """What went wrong, and what to do. After the first step, at which the same settings
    passed, numbers that have grown are the cause, and not a sigma that is too small."""
    path, size = _largest(params)
    by_now = f"by now the largest parameter, {path!r}, reaches {size:.2g}"
    if code == estimate.BAD_SIGMA:
        return "sigma is not a positive number", "Check its schedule"
    if code == estimate.BAD_RELAXATION:
        return (
            "half of the examples still moved by a tenth in the last sweep of the free "
            "phase",
            "Allow more sweeps, or damp them with Relaxation(factor=0.5)",
        )
    if code == estimate.BAD_LOSS:
        what = "a loss is not finite although every node is"
        return what, f"Check the batch and the loss function; {by_now}"
    if code == estimate.BAD_GRADIENT:
        what = "the clean pass is finite but the gradient estimate is not"
        return what, f"Lower sigma or the learning rate; {by_now}"
    if code == estimate.LOST_LOSS:
        lost = "their differences are rounding errors"
        if step:
            return f"the losses have grown so large that {lost}; {by_now}", _RATE
        return (
            "noise moves the losses by less than the spacing of numbers of their size, "
            f"so that {lost}: subtract a constant inside the loss function, add its "
            "terms up in float64, or raise sigma",
            "Losses that are large from the start hide what the noise does to them",
        )
    key = jax.random.key(0) if takes_key(loss_fn) else None
    names = site_names(loss_fn, params, batch, key)
    name_of = {estimate.name_code(name): name for name in names}
    if code > estimate.SMALL_SIGMA:
        what = f"node {name_of[code]!r} is not finite"
        return what, f"Check the batch, or lower the learning rate; {by_now}"
    name = name_of[estimate.SMALL_SIGMA - code]
    if step:
        return (
            f"the values of node {name!r} have grown so large that noise of this sigma "
            f"is lost to rounding in them (or sigma has fallen); {by_now}",
            _RATE,
        )
    safe = smallest_at(name, loss_fn, params, batch, key)
    return (
        f"the noise is lost to rounding at node {name!r}: sigma is too small for the "
        f"precision of its values; at these parameters the smallest safe sigma is "
        f"{safe:.2g}",
        "Raise sigma or the precision of the node",
    )


def _largest(params) -> tuple[str, float]:
    """Path and size of the largest entry of the parameters; nan counts as the largest."""
    leaves = jax.tree.leaves(params)
    sizes = [float(jnp.max(jnp.abs(leaf), initial=0)) for leaf in leaves]
    pairs = zip(param_paths(params), sizes, strict=True)
    return max(pairs, key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1])
