"""Estimators as optax gradient transformations.

An estimator is a pair of pure functions; `transformation` makes it the first link of an
optax chain. Its state holds the key, the step, the loss of the clean pass and the first
fault seen, so that nothing inside a step has to reach the host.
"""

import inspect
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bpfree.program.trace import LossFn, arguments, site_names, split_aux, takes_key
from bpfree.sampling.scale import at_least_float32, smallest_at

# Arguments that `optax.inject_hyperparams` must leave alone, of those that every
# perturbation estimator has; `static_args` names all of a given one.
STATIC = (
    "loss_fn",
    "num_samples",
    "seed",
    "chunk_size",
    "antithetic",
    "baseline",
    "pairing",
    "nodes",
    "noise",
    "sharding",
    "example_batch",
)

_IMPL = "threefry2x32"
NO_FAULT, BAD_LOSS, BAD_SIGMA, BAD_GRADIENT = -1, -2, -3, -4
BAD_RELAXATION = -5
SMALL_SIGMA = -16  # minus the position of the node for which sigma is too small


class Fault(NamedTuple):
    """The first step (int32, -1: none) whose numbers went wrong, and where (int32)."""

    step: jax.Array
    code: jax.Array


class Estimate(NamedTuple):
    """What one estimate returns.

    Attributes:
      gradient: params-shaped, of the mean loss; to be descended.
      value: mean of the clean losses, float32 ().
      aux: the loss function's aux from the clean pass, or None.
      fault: int32 (), NO_FAULT, or a code, or the position of a bad node.
      state: the estimator's own next state.
    """

    gradient: Any
    value: jax.Array
    aux: Any
    fault: jax.Array
    state: Any = ()


class EstimatorState(NamedTuple):
    """State of an estimator in a chain.

    Attributes:
      count: steps done, int32 ().
      key: PRNG key of the run; step t uses `fold_in(key, t)`.
      value: mean clean loss of the last step, float32 (); read it with `bpfree.value`.
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


class Estimator(NamedTuple):
    """A gradient estimator.

    Attributes:
      init: `params -> state`, the estimator's own state.
      estimate: `(key, params, batch, state, wanted=None) -> Estimate`; `state` is an
        EstimatorState, of which it may read all and replaces `inner`. `wanted` says for
        each leaf of params whether anybody asks for its gradient. The key is consumed.
    """

    init: Callable[[Any], Any]
    estimate: Callable[..., Estimate]


class EstimatorTransformation(optax.GradientTransformationExtraArgs):
    """An optax transformation that still offers the estimator behind it."""

    estimator: Estimator
    loss_fn: LossFn


def transformation(
    estimator: Estimator,
    loss_fn: LossFn,
    seed: int | jax.Array,
    example_batch: Any = None,
) -> EstimatorTransformation:
    """The optax transformation of an estimator.

    `update(updates, state, params, *, batch)` ignores the incoming updates (pass
    `zeros_like(params)`; `apply_if_finite` and `MultiSteps` break on None) and returns
    the estimated gradient of the mean loss. Unknown keywords are ignored.

    Args:
      seed: int or typed PRNG key.
      example_batch: needed only if `loss_fn` returns `(losses, aux)`: a batch, or
        ShapeDtypeStructs of one, from which `init` knows the shapes of aux.
    """

    def init(params) -> EstimatorState:
        return EstimatorState(
            count=jnp.zeros((), jnp.int32),
            key=as_key(seed),
            value=jnp.zeros((), jnp.float32),
            aux=_empty_aux(loss_fn, params, example_batch),
            fault=Fault(jnp.int32(-1), jnp.int32(NO_FAULT)),
            inner=estimator.init(params),
        )

    def update(updates, state, params=None, *, batch=None, **extra):
        del updates, extra
        if params is None:
            raise ValueError("an estimator needs params: update(updates, state, params)")
        if batch is None:
            raise ValueError("an estimator needs a batch: update(..., batch=batch)")
        key = jax.random.fold_in(state.key, state.count)
        result = estimator.estimate(key, params, batch, state)
        _check_aux(state.aux, result.aux)
        sums = [at_least_float32(g).sum() for g in jax.tree.leaves(result.gradient)]
        finite = reduce(jnp.logical_and, map(jnp.isfinite, sums))
        bad = jnp.where(finite, NO_FAULT, BAD_GRADIENT)
        code = jnp.where(result.fault == NO_FAULT, bad, result.fault)
        first = (state.fault.step < 0) & (code != NO_FAULT)
        fault = Fault(state.count, code.astype(jnp.int32))
        new_state = EstimatorState(
            count=state.count + 1,
            key=state.key,
            value=result.value,
            aux=_typed_as(state.aux, result.aux),
            fault=jax.tree.map(lambda n, o: jnp.where(first, n, o), fault, state.fault),
            inner=result.state,
        )
        return result.gradient, new_state

    made = EstimatorTransformation(init, update)
    made.estimator = estimator
    made.loss_fn = loss_fn
    return made


def static_args(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Arguments of an estimator's constructor that are no hyper-parameters.

    For `optax.inject_hyperparams(factory, static_args=bpfree.static_args(factory))`:
    sigma is left over.
    """
    return tuple(
        name for name in inspect.signature(factory).parameters if name != "sigma"
    )


def as_key(seed) -> jax.Array:
    """A threefry key of our own: `vmap` over keys of other kinds draws other numbers,
    and a donated state must not take the caller's key with it."""
    if not (
        isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    ):
        return jax.random.key(seed, impl=_IMPL)
    if str(jax.random.key_impl(seed)) == _IMPL:
        return jax.random.clone(seed)
    words = jax.random.bits(seed, (2,), jnp.uint32)
    return jax.random.wrap_key_data(words, impl=_IMPL)


def _empty_aux(loss_fn, params, example_batch):
    if example_batch is None:
        return None
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = arguments(loss_fn, params, example_batch, key)
    _, aux = split_aux(jax.eval_shape(loss_fn, *args))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)


def _typed_as(expected, found):
    return jax.tree.map(lambda e, f: jnp.asarray(f, e.dtype), expected, found)


def _check_aux(expected, found) -> None:
    wanted, got = jax.tree.structure(expected), jax.tree.structure(found)
    if wanted != got:  # type: ignore[operator]
        raise ValueError(
            f"aux is {got}, but the state holds {wanted}. A loss function that returns "
            "(losses, aux) needs example_batch= at construction, and batches of that "
            "structure in update(...)."
        )


# ------------------------------------------------------------------- reading the state


def find_states(state: Any) -> dict[str, EstimatorState]:
    """Every EstimatorState in an optimiser state, by its path."""
    found = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda s: isinstance(s, EstimatorState)
    )[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in found
        if isinstance(leaf, EstimatorState)
    }


def find_state(state: Any, name: str | None = None) -> EstimatorState:
    """The one estimator state of a chain, or the one whose path contains `name`.

    Raises ValueError when there is none, or several that `name` does not tell apart.
    """
    states = find_states(state)
    chosen = {
        path: s for path, s in states.items() if name is None or name in path.split("/")
    }
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    if not states:
        raise ValueError("this optimiser state holds no bpfree estimator")
    raise ValueError(
        f"{len(chosen)} estimators match name={name!r}; pass one name out of the paths "
        f"{sorted(states)}"
    )


def value(state: Any, name: str | None = None) -> jax.Array:
    """Mean clean loss of the last step, float32 (); arguments as in `find_state`."""
    return find_state(state, name).value


def aux(state: Any, name: str | None = None) -> Any:
    """Aux of the last clean pass, or None; arguments as in `find_state`."""
    return find_state(state, name).aux


def metrics(state: Any, name: str | None = None) -> dict[str, jax.Array]:
    """What the estimator, and the links behind it, say of the last step.

    {name: float32 ()}; {} for most.
    """
    behind = [link.metrics for link in _links(state) if hasattr(link, "metrics")]
    said = getattr(find_state(state, name).inner, "metrics", {})
    return {k: v for found in (said, *behind) for k, v in found.items()}


def _links(state: Any) -> list[Any]:
    """The states of a chain that say something of themselves, and other leaves."""

    def speaks(node):
        told = hasattr(node, "metrics") or hasattr(node, "fault_message")
        return told or isinstance(node, EstimatorState)

    return jax.tree.leaves(state, is_leaf=speaks)


def fault_message(
    state: Any, loss_fn: LossFn, params, batch, name: str | None = None
) -> str | None:
    """What went wrong first, in words, or None. Reads a few numbers from the device.

    Of the estimator, or else of the links behind it.
    """
    fault = find_state(state, name).fault
    step, code = int(fault.step), int(fault.code)
    if step < 0:
        found = (s.fault_message() for s in _links(state) if hasattr(s, "fault_message"))
        return next(filter(None, found), None)
    if code == BAD_LOSS:
        what = "a loss is not finite although every node is"
    elif code == BAD_SIGMA:
        what = "sigma is not a positive number"
    elif code == BAD_GRADIENT:
        what = "the clean pass is finite but the gradient estimate is not"
    elif code == BAD_RELAXATION:
        what = (
            "half of the examples still moved by a tenth in the last sweep of the free "
            "phase; allow more sweeps, or damp them with Relaxation(factor=0.5)"
        )
    else:
        what = _node_fault(code, loss_fn, params, batch)
    return (
        f"step {step}: {what}. Lower the learning rate, clip the update "
        "(optax.clip_by_global_norm), or check the batch and sigma."
    )


def _node_fault(code: int, loss_fn, params, batch) -> str:
    key = jax.random.key(0) if takes_key(loss_fn) else None
    name_of = site_names(loss_fn, params, batch, key)
    if code > SMALL_SIGMA:
        return f"node {name_of[code]!r} is not finite"
    name = name_of[SMALL_SIGMA - code]
    safe = smallest_at(name, loss_fn, params, batch, key)
    return (
        f"the noise is lost to rounding at node {name!r}: sigma is too small for the "
        f"precision of its values; at these parameters the smallest safe sigma is "
        f"{safe:.2g}"
    )
