"""Estimators as optax gradient transformations.

An estimator is a pair of pure functions; `transformation` makes it the first link of an
optax chain. Its state holds the key, the step, the loss of the clean pass and the first
fault seen, so that nothing inside a step has to reach the host.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bpfree.estimators import placement
from bpfree.estimators.estimate import BAD_GRADIENT, NO_FAULT, Estimator
from bpfree.estimators.objective import Objective, is_energy
from bpfree.program.trace import arguments, split_aux
from bpfree.sampling import seeds
from bpfree.sampling.scale import at_least_float32


class Fault(NamedTuple):
    """The first step (int32, -1: none) whose numbers went wrong, and where (int32)."""

    step: jax.Array
    code: jax.Array


class EstimatorState(NamedTuple):
    """State of an estimator in a chain.

    Attributes:
      count: steps done, int32 ().
      key: words of the run's PRNG key, uint32 (2,); step t uses `fold_in(key, t)`.
      value: mean clean loss of the last step, float32 (), infinite before the first; read
        it with `bpfree.value`.
      aux: aux of the last clean pass, or None.
      fault: the first fault; read it with `bpfree.fault_message`.
      inner: the estimator's own state.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name; shadows tuple.count
    key: jax.Array
    value: jax.Array
    aux: Any
    fault: Fault
    inner: Any


class EstimatorTransformation(optax.GradientTransformationExtraArgs):
    """An optax transformation that still offers its estimator."""

    estimator: Estimator
    loss_fn: Any  # the objective: a loss function, or an energy


def transformation(
    estimator: Estimator,
    objective: Objective,
    seed: int | jax.Array,
    example_batch: Any = None,
) -> EstimatorTransformation:
    """The optax transformation of an estimator.

    `update(updates, state, params, *, batch)` returns the incoming updates plus the
    estimated gradient of the mean loss: what stands to its left in a chain counts, for
    instance `optax.add_decayed_weights`. Pass `zeros_like(params)`, or None. Unknown
    keywords are ignored.

    Args:
      seed: whole number or typed PRNG key.
      example_batch: needed only if `objective` returns `(losses, aux)`: a batch, or
        ShapeDtypeStructs of one, from which `init` knows the shapes of aux.
    """

    def init(params) -> EstimatorState:
        placement.check(params)
        return EstimatorState(
            count=jnp.zeros((), jnp.int32),
            key=seeds.words_of(seed),
            value=jnp.full((), jnp.inf, jnp.float32),
            aux=_empty_aux(objective, params, example_batch),
            fault=Fault(jnp.int32(-1), jnp.int32(NO_FAULT)),
            inner=estimator.init(params),
        )

    def update(updates, state, params=None, *, batch=None, **extra):
        del extra
        if params is None:
            raise ValueError("an estimator needs params: update(updates, state, params)")
        placement.check(params)
        placement.check_batch(batch)
        key = jax.random.fold_in(seeds.from_words(state.key), state.count)
        with jax.named_scope("bpfree.estimate"):
            found = estimator.estimate(key, params, batch, state)
        sums = [_total(g) for g in jax.tree.leaves(found.gradient)]
        widest = max((total.dtype for total in sums), key=lambda kind: kind.itemsize)
        finite = jnp.isfinite(sum(total.astype(widest) for total in sums))
        bad = jnp.where(finite, NO_FAULT, BAD_GRADIENT)
        code = jnp.where(found.fault == NO_FAULT, bad, found.fault)
        first = (state.fault.step < 0) & (code != NO_FAULT)
        fault = Fault(state.count, code.astype(jnp.int32))
        new_state = state._replace(
            count=state.count + 1,
            value=found.value,
            aux=_aux_like(state.aux, found.aux),
            fault=jax.tree.map(lambda n, o: jnp.where(first, n, o), fault, state.fault),
            inner=found.state,
        )
        return _sum(updates, found.gradient), new_state

    made = EstimatorTransformation(init, update)
    made.estimator = estimator
    made.loss_fn = objective
    return made


@jax.jit  # here and elsewhere: one function in the program for all leaves of a shape
def _total(leaf):
    return at_least_float32(leaf).sum()


def static_args(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Arguments of an estimator's constructor that are no hyper-parameters.

    For `optax.inject_hyperparams(factory, static_args=bpfree.static_args(factory))`:
    sigma is left over.

    Example:
        >>> make = bpfree.likelihood_ratio
        >>> make = optax.inject_hyperparams(make, static_args=bpfree.static_args(make))
        >>> tx = make(loss_fn, num_samples=4, sigma=0.5)
        >>> float(tx.init(params).hyperparams["sigma"])
        0.5
    """
    return tuple(
        name for name in inspect.signature(factory).parameters if name != "sigma"
    )


def _empty_aux(loss_fn, params, example_batch):
    if example_batch is None or is_energy(loss_fn):
        return None
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = arguments(loss_fn, params, example_batch, key)
    _, aux = split_aux(jax.eval_shape(loss_fn, *args))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)


def _sum(incoming: Any, gradient: Any) -> Any:
    """Both added up, in the types of the gradient; None counts as zeros."""
    if incoming is None:
        return gradient
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (incoming, gradient)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the incoming updates, to which the estimate is added, must have the "
            "structure and shapes of params: pass zeros_like(params), or None"
        )
    return jax.tree.map(lambda u, g: jnp.asarray(u, g.dtype) + g, incoming, gradient)


def _aux_like(expected: Any, found: Any) -> Any:
    """The aux of a step in the types that the state holds; ValueError if it differs."""
    wanted, got = jax.tree.structure(expected), jax.tree.structure(found)
    if wanted != got:  # type: ignore[operator]
        raise ValueError(
            f"aux is {got}, but the state holds {wanted}. A loss function that returns "
            "(losses, aux) needs example_batch= at construction, and batches of that "
            "structure in update(...)."
        )
    return jax.tree.map(lambda e, f: jnp.asarray(f, e.dtype), expected, found)
