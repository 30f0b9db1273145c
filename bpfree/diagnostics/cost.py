"""What an update costs, in matrix products."""

import math
from collections.abc import Callable
from typing import Any

import jax

from bpfree.estimators.base import EstimatorTransformation
from bpfree.program import tags
from bpfree.program.trace import arguments


def cost(estimator: EstimatorTransformation, params: Any, batch: Any) -> float:
    """Products of one update in units of those of one inference of the batch.

    Counts the floating point operations of matrix products and convolutions, loops as
    often as they run, and nothing else: no random numbers, no elementwise work. nan where
    a `while` loop runs an unknown number of times. `scripts/benchmark.py` takes the time.

    Args:
      estimator: any bpfree estimator.
      params, batch: the arguments of its loss function; shapes are enough.

    Example:
        >>> round(bpfree.diagnostics.cost(bpfree.backprop(loss_fn), params, batch), 2)
        2.4
    """
    state = jax.eval_shape(estimator.init, params)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def update(params, state, batch):
        return estimator.update(None, state, params, batch=batch)

    args = arguments(estimator.loss_fn, params, batch, key)
    inference = products(estimator.loss_fn, *args)
    return products(update, params, state, batch) / inference if inference else math.nan


def samples_for(
    make: Callable[[int], EstimatorTransformation],
    budget: float,
    params: Any,
    batch: Any,
    *,
    group: int = 1,
) -> int:
    """The most samples with which an update costs no more than `budget` inferences.

    The cost is taken as linear in full chunks of samples, and read at 16 and 32. Where it
    does not rise between them, or is not known, the result is 32.

    Args:
      make: `num_samples -> estimator`.
      budget: products of one update, in inferences of the batch (see `cost`).
      params, batch: the arguments of the loss function; shapes are enough.
      group: the result is a multiple of it, at least itself (2 for antithetic pairs).

    Example:
        >>> make = lambda n: bpfree.node_perturbation(loss_fn, num_samples=n)
        >>> bpfree.diagnostics.samples_for(make, 16, params, batch)
        19
    """
    few, many = 16, 32
    spent = {n: cost(make(n), params, batch) for n in (few, many)}
    slope = (spent[many] - spent[few]) / (many - few)
    if not slope > 0:  # samples cost nothing, or a number that nobody knows
        return max(group, many)
    allowed = few + (budget - spent[few]) / slope
    return max(group, int(allowed / group + 1e-6) * group)


def products(fn, *args) -> float:
    """Floating point operations of the matrix products and convolutions in `fn(*args)`.

    Args:
      fn: a function of arrays, which is traced and not run.
      args: its arguments; shapes are enough.

    Example:
        >>> bpfree.diagnostics.products(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 5)))
        60.0
    """
    jaxpr, _ = tags.open_jaxpr(jax.make_jaxpr(fn)(*args))
    used, _ = tags.dce(jaxpr, [True] * len(jaxpr.outvars))
    return _products_in(used)


def _products_in(jaxpr) -> float:
    return sum((_products_of(eqn) for eqn in jaxpr.eqns), start=0.0)


def _products_of(eqn) -> float:
    name = eqn.primitive.name
    out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2.0 * out * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        zeros_between = math.prod(eqn.params["lhs_dilation"])
        return 2.0 * out * math.prod(kernel) / features / zeros_between
    bodies = [_products_in(body) for body in tags.sub_jaxprs(eqn)]
    if eqn.params.get("branches_platforms"):
        return bodies[-1]  # what any platform may compute
    if name == "cond":
        return math.nan if any(map(math.isnan, bodies)) else max(bodies)
    if name == "while":
        return math.nan if any(bodies) else 0.0
    return sum(bodies) * eqn.params.get("length", 1)
