"""Blocks of training steps that run on the device, without the host between them.

Everything random is a function of (seed, step): a resumed run repeats the
undisturbed one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh

import bpfree
from bpfree.data import Augment, Batch
from bpfree.program.convolutions import canonical_convs
from bpfree.sampling.seeds import as_key
from bpfree.training import mesh


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: updates done, int32 ().
      params: the model's "params" collection.
      model_state: its other collections ("batch_stats"), {} if it has none.
      opt_state: state of the chain, the estimator's included.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any


class Metrics(NamedTuple):
    """Of one block: mean clean training loss and the metrics on validation, float32 ();
    and what the estimator says of the last step (`bpfree.metrics`)."""

    loss: jax.Array
    validation: dict[str, jax.Array]
    estimator: dict[str, jax.Array]


class Keys(NamedTuple):
    """Independent keys of a run; `order` and `augment` are never consumed themselves."""

    init: jax.Array
    estimator: jax.Array
    order: jax.Array
    augment: jax.Array


class Task(NamedTuple):
    """What a block computes, arrays aside.

    Attributes:
      measure: `(params, model_state, batch) -> {metric: ()}`, see `training/losses.py`.
    """

    model: nn.Module
    transformation: optax.GradientTransformationExtraArgs
    measure: Callable[[Any, Any, Batch], dict[str, jax.Array]]
    augment: Augment | None
    keys: Keys
    batch_size: int
    mesh: Mesh | None = None  # one device


def make_keys(seed: int) -> Keys:
    """The keys of a run; the seed may be traced."""
    return Keys(*jax.random.split(as_key(seed), len(Keys._fields)))


def init_variables(model: nn.Module, key: jax.Array, batch: Batch) -> tuple[Any, Any]:
    """(params, model_state); `batch` gives the shapes. Consumes the key; traceable."""
    variables = dict(model.init(key, batch["x"]))
    if not variables.get("params"):
        raise ValueError("the model has no parameters to train")
    return variables.pop("params"), variables


def with_state(batch: Batch, model_state: Any) -> Batch:
    """The batch as the objective reads it, `bpfree.supervised(..., mutable=...)`."""
    return {**batch, "state": model_state}


def without_state(batch: Batch) -> Batch:
    """The batch as the data give it."""
    return {name: value for name, value in batch.items() if name != "state"}


def init_state(task: Task, params: Any, model_state: Any) -> TrainState:
    """The state before the first update."""
    opt_state = jax.jit(task.transformation.init)(params)
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state)


def batch_order(
    key: jax.Array, start: jax.Array, length: int, size: int, batch_size: int
) -> jax.Array:
    """Rows of the training set for steps start, ..., start + length - 1.

    Epoch e is a permutation that depends on (key, e) only, cut into batches; its last
    `size % batch_size` examples sit the epoch out.

    Returns: int32 (length, batch_size).
    """
    per_epoch = size // batch_size
    epochs = start // per_epoch + jnp.arange(-(-length // per_epoch) + 1, dtype=jnp.int32)

    def batches(epoch):
        rows = jnp.arange(size, dtype=jnp.int32)
        rows = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
        return rows[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    rows = jax.vmap(batches)(epochs).reshape(-1, batch_size)
    return lax.dynamic_slice_in_dim(rows, start % per_epoch, length)


def advance(
    task: Task, length: int, state: TrainState, train: Batch, count: Any = None
) -> tuple[TrainState, jax.Array]:
    """`count` updates on rows of `train`, and the sum of their losses (); traceable.

    Args:
      length: the largest count. It is static; the count may be an argument of the
        program, so that pieces of any length run without another compilation.
      count: int32 (); None is `length`.
    """
    size = train["label"].shape[0]
    rows = batch_order(task.keys.order, state.step, length, size, task.batch_size)
    take = lambda i: jax.tree.map(lambda a: a[rows[i]], train)  # noqa: E731
    return count_steps(task, state, length if count is None else count, take)


def count_steps(
    task: Task, state: TrainState, count: Any, batch_of: Callable[[Any], Batch]
) -> tuple[TrainState, jax.Array]:
    """`count` updates, on `batch_of(i)` the i-th; the sum of their losses ()."""

    def step(i, state, total):
        state, loss = train_step(task, state, batch_of(i))
        return state, total + loss

    run = canonical_convs(step)
    first = state, jnp.zeros_like(bpfree.value(state.opt_state))
    state, total = lax.fori_loop(0, count, lambda i, carry: run(i, *carry), first)
    return mesh.in_place(task.mesh, state), total


def train_step(task: Task, state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
    """Augment and update; the mean clean loss of the batch before it."""
    batch = mesh.over_data(task.mesh, batch)
    if task.augment is not None:
        key = jax.random.fold_in(task.keys.augment, state.step)
        batch = task.augment(key, batch)
    zeros = optax.tree.zeros_like(state.params)
    batch = with_state(batch, state.model_state)
    updates, opt_state = task.transformation.update(
        zeros, state.opt_state, state.params, batch=batch
    )
    params = optax.apply_updates(state.params, updates)
    model_state = bpfree.aux(opt_state) or {}  # None: the objective has no aux
    state = TrainState(state.step + 1, params, model_state, opt_state)
    value = mesh.replicated(task.mesh, bpfree.value(opt_state))
    return mesh.in_place(task.mesh, state), value


@jax.named_scope("bpfree.validation")
def look(task: Task, state: TrainState, loss: Any, validation: Batch) -> Metrics:
    """What a log point has of a block with this mean loss."""
    seen = task.measure(state.params, state.model_state, validation)
    metrics = Metrics(loss, seen, bpfree.metrics(state.opt_state))
    return mesh.replicated(task.mesh, metrics)


def lowered(function: Callable[..., Any], state: TrainState, *args: Any) -> Any:
    """The function of (state, *args), to be compiled; its calls donate the state."""
    return jax.jit(function, donate_argnums=0).lower(state, *args)
