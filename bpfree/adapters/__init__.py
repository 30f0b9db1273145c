"""Objectives out of Flax models that nobody edited, Linen or NNX.

An adapter is a module with `bind(model, rngs, mutable, options)`: it returns
`apply(params, state, x, key) -> (outputs, new state)`. Nodes need no adapter: they are
found in the program of any loss function.

State that is no parameter (running statistics) travels through the loss function: in
with the batch, out as aux.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import jax
from flax import linen as nn

from bpfree.adapters import linen
from bpfree.choices import check_choice
from bpfree.program import tags

__all__ = ["supervised"]

Noise = Literal["preactivation", "weight", "auto"]


def supervised(
    model: Any,
    loss: Callable[[Any, jax.Array], jax.Array],
    *,
    x: str = "x",
    label: str = "label",
    noise: Noise = "preactivation",
    rngs: Sequence[str] = (),
    mutable: Sequence[Any] = (),
    state: str = "state",
    **call_kwargs: Any,
) -> Callable[..., Any]:
    """The objective of a Flax model on labelled batches.

    Args:
      model: a Linen or NNX module, called as `model(batch[x], **call_kwargs)`. An NNX
        module is read once, here, and never changed: all but its params is copied.
      loss: `(outputs, labels) -> (B,)`, one loss per example; for instance
        `optax.softmax_cross_entropy_with_integer_labels`.
      x, label: keys of the batch, a mapping.
      noise: where the noise of a weight product goes: "preactivation" (to its output),
        "weight" (to its parameters, shared by the batch), or "auto": to the parameters
        where they have fewer entries than the output of one example.
      rngs: names of the random streams the model needs ("dropout"). The objective then
        takes a third argument, the PRNG key. NNX names the streams of a model made with
        `nnx.Rngs(0)` "default".
      mutable: collections of a Linen model (("batch_stats",)) or types of NNX variables
        ((nnx.BatchStat,)) that a training pass changes. The batch then brings their
        values, `batch[state]`, and the objective returns `(losses, new values)`; feed
        back `bpfree.aux(opt_state)`, and give the estimator `example_batch=`.
      state: key of the batch for these values: `{"batch_stats": ...}`, as in a Linen
        model's variables, or `nnx.state(model, nnx.BatchStat)`. A Linen model takes
        what it only reads from there too.
      call_kwargs: passed on to the model (`train=True`, say).

    Returns: `(params, batch[, key]) -> losses (B,)`, or `(losses, aux)`; params is the
      "params" collection of a Linen model, `model.init(...)["params"]`, or
      `nnx.state(model, nnx.Param)`. To evaluate a trained model, call the model itself
      (`train=False`; `nnx.update(model, params, aux)` and `model.eval()`).

    Raises:
      TypeError: a model that is neither. When traced: a batch that is no mapping.
      KeyError (when traced): a key missing from the batch.
      ValueError: an unknown `noise`. When traced: params that are not the model's; NNX
        random streams that the model uses but `rngs` does not name.

    Example:
        >>> from flax import linen as nn
        >>> model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)])
        >>> squared_error = lambda y, t: ((y - t) ** 2).sum(1)
        >>> loss_fn = bpfree.supervised(model, squared_error, label="t")
        >>> params = model.init(jax.random.key(0), batch["x"])["params"]
        >>> loss_fn(params, batch).shape
        (5,)
    """
    check_choice("noise", noise, Noise)
    apply = _adapter(model).bind(model, tuple(rngs), tuple(mutable), call_kwargs)
    keys = (x, label, state) if mutable else (x, label)

    def objective_with_key(params, batch, key):
        _check_batch(batch, keys)
        if noise != "preactivation":
            params = jax.tree.map(lambda p: tags.tagged(p, noise), params)
        outputs, aux = apply(params, batch.get(state, {}), batch[x], key)
        losses = loss(outputs, batch[label])
        return (losses, aux) if mutable else losses

    def objective(params, batch):
        return objective_with_key(params, batch, None)

    return objective_with_key if rngs else objective


def _adapter(model: Any) -> ModuleType:
    if isinstance(model, nn.Module):
        return linen
    if "flax.nnx" in sys.modules:  # as it is wherever an NNX model was made
        from bpfree.adapters import nnx  # takes about as long to import as all of bpfree

        if isinstance(model, nnx.nnx.Module):
            return nnx
    raise TypeError(
        f"supervised takes a Flax Linen or NNX module, got {type(model).__name__}. For "
        "any other model write the loss function itself, (params, batch) -> losses (B,)."
    )


def _check_batch(batch: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"the batch must be a mapping with keys {keys}, got {type(batch).__name__}"
        )
    for key in keys:
        if key not in batch:
            raise KeyError(
                f"the batch has no {key!r}; it has {sorted(batch)}. Name the keys with "
                "bpfree.supervised(model, loss, x=..., label=..., state=...)."
            )
