"""Objectives out of Flax models that nobody edited, Linen or NNX.

An adapter is a module with one function, `bind(model, where, rngs, options)`: it returns
`apply(params, x, key) -> outputs`, whose layers are nodes.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
from flax import linen as nn

from bpfree.adapters import linen
from bpfree.adapters.linen import tag_linen

__all__ = ["supervised", "tag_linen", "tag_nnx"]


def supervised(
    model: Any,
    loss: Callable[[Any, jax.Array], jax.Array],
    *,
    x: str = "x",
    label: str = "label",
    where: Callable[[Any], bool] | None = None,
    rngs: Sequence[str] = (),
    **call_kwargs: Any,
) -> Callable[..., jax.Array]:
    """The objective of a Flax model on labelled batches, with its nodes marked.

    Args:
      model: a Linen or NNX module, called as `model(batch[x], **call_kwargs)`. An NNX
        module is read once, here, and never changed: all but its params is copied.
      loss: `(outputs, labels) -> (B,)`, one loss per example; for instance
        `optax.softmax_cross_entropy_with_integer_labels`.
      x, label: keys of the batch, a mapping.
      where: predicate on modules to mark; see `tag_linen` and `tag_nnx`.
      rngs: names of the random streams the model needs ("dropout"). The objective then
        takes a third argument, the PRNG key. NNX names the streams of a model made with
        `nnx.Rngs(0)` "default".
      call_kwargs: passed on to the model (`train=True`, say).

    Returns: `(params, batch[, key]) -> losses (B,)`; params is the "params" collection of
      a Linen model, `model.init(...)["params"]`, or `nnx.state(model, nnx.Param)`.

    Raises:
      TypeError: a model that is neither. When traced: a batch that is no mapping.
      KeyError (when traced): a key missing from the batch.
      ValueError (when traced): params that are not the model's; NNX random streams that
        the model uses but `rngs` does not name.
    """
    apply = _adapter(model).bind(model, where, tuple(rngs), call_kwargs)

    def objective_with_key(params, batch, key):
        _check_batch(batch, (x, label))
        return loss(apply(params, batch[x], key), batch[label])

    def objective(params, batch):
        return objective_with_key(params, batch, None)

    return objective_with_key if rngs else objective


def tag_nnx(model: Any, where: Callable[[Any], bool] | None = None) -> Any:
    """A copy of an NNX model with the outputs of its layers marked as nodes.

    Marks the output of every Linear, LinearGeneral, Einsum, Conv, ConvTranspose and Embed
    (norms belong to the next node's block; attention and recurrent cells are made of
    these) under the module's path, and its input as what its kernel multiplies. The batch
    axis is the first one of the output. In a loss function, merge first:
    `bpfree.tag_nnx(nnx.merge(graphdef, params, rest))(x)`.

    Args:
      model: an NNX module; it stays as it is.
      where: predicate on the module; False leaves it unmarked, so that it becomes part of
        the next node's block. A module that has several paths is named by one of them.
    """
    return _nnx().tagged(model, where)


def _adapter(model: Any) -> ModuleType:
    if isinstance(model, nn.Module):
        return linen
    if "flax.nnx" in sys.modules:  # as it is wherever an NNX model was made
        adapter = _nnx()
        if isinstance(model, adapter.nnx.Module):
            return adapter
    raise TypeError(
        f"supervised takes a Flax Linen or NNX module, got {type(model).__name__}. In "
        "other code mark the nodes with bpfree.node."
    )


def _nnx() -> ModuleType:
    """Imported late: NNX takes about as long to import as all of bpfree."""
    from bpfree.adapters import nnx

    return nnx


def _check_batch(batch: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"the batch must be a mapping with keys {keys}, got {type(batch).__name__}"
        )
    for key in keys:
        if key not in batch:
            raise KeyError(
                f"the batch has no {key!r}; it has {sorted(batch)}. Name the keys with "
                "bpfree.supervised(model, loss, x=..., label=...)."
            )
