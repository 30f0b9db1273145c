"""Mark the nodes of Flax Linen models that nobody edited.

The tags are put in while the model is traced, by Linen's method interceptors. They are
operations and not variables, so they need no collection and survive `nn.scan`, `nn.RNN`,
`nn.vmap` and `nn.remat`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from bpfree.nodes import kernel_input, node

# Modules whose output is a weight product: (class, name of the kernel parameter).
PRODUCTS = (
    (nn.Dense, "kernel"),
    (nn.DenseGeneral, "kernel"),
    (nn.Einsum, "kernel"),
    (nn.Conv, "kernel"),
    (nn.ConvLocal, "kernel"),
    (nn.ConvTranspose, "kernel"),
    (nn.Embed, "embedding"),
)
_METHODS = ("__call__", "attend")

Where = Callable[[nn.Module], bool]


def tag_linen(fn: Callable[..., Any], where: Where | None = None) -> Callable[..., Any]:
    """`fn` with the outputs of all Linen layers run inside it marked as nodes.

    Marks the output of every Dense, DenseGeneral, Einsum, Conv, ConvLocal, ConvTranspose
    and Embed (norms belong to the next node's block) under the module's path, and its
    input as what its kernel multiplies. The batch axis is the first one of the output.

    Args:
      fn: any function that applies Linen modules, such as `model.apply`.
      where: predicate on the module; False leaves it unmarked, so that it becomes part of
        the next node's block.
    """

    def interceptor(next_fun, args, kwargs, context):
        kernel = _kernel_name(context)
        if kernel is None or (where is not None and not where(context.module)):
            return next_fun(*args, **kwargs)
        path = "/".join(context.module.path)
        x, *rest = args
        if jax.numpy.issubdtype(jax.numpy.result_type(x), jax.numpy.inexact):
            x = kernel_input(x, f"{path}/{kernel}")
        return node(next_fun(x, *rest, **kwargs), path or type(context.module).__name__)

    def tagged(*args, **kwargs):
        with nn.intercept_methods(interceptor):
            return fn(*args, **kwargs)

    return tagged


def _kernel_name(context: nn.module.InterceptorContext) -> str | None:
    if context.method_name not in _METHODS:
        return None
    names = (kernel for cls, kernel in PRODUCTS if isinstance(context.module, cls))
    return next(names, None)


def supervised(
    model: nn.Module,
    loss: Callable[[Any, jax.Array], jax.Array],
    *,
    x: str = "x",
    label: str = "label",
    where: Where | None = None,
    rngs: Sequence[str] = (),
    **apply_kwargs: Any,
) -> Callable[..., jax.Array]:
    """The objective of a Linen model on labelled batches, with its nodes marked.

    Args:
      model: a Linen module, called as `model(batch[x], **apply_kwargs)`.
      loss: `(outputs, labels) -> (B,)`, one loss per example; for instance
        `optax.softmax_cross_entropy_with_integer_labels`.
      x, label: keys of the batch, a mapping.
      where: predicate on modules to mark; see `tag_linen`.
      rngs: names of the random streams the model needs ("dropout"). The objective then
        takes a third argument, the PRNG key.
      apply_kwargs: passed on to the model (`train=True`, say).

    Returns: `(params, batch[, key]) -> losses (B,)`; params is the model's "params"
      collection, `model.init(...)["params"]`.

    Raises (when traced):
      KeyError: a key missing from the batch. TypeError: a batch that is no mapping.
      ValueError: a whole variables dict in place of its "params" collection.
    """
    apply = tag_linen(model.apply, where)

    def objective(params, batch):
        return _losses(params, batch, {})

    def objective_with_key(params, batch, key):
        keys = jax.random.split(key, len(rngs))
        return _losses(params, batch, {"rngs": dict(zip(rngs, keys, strict=True))})

    def _losses(params, batch, random_streams):
        _check_batch(batch, (x, label))
        if isinstance(params, Mapping) and set(params) == {"params"}:
            raise ValueError(
                'params is a whole variables dict; pass model.init(...)["params"]'
            )
        outputs = apply({"params": params}, batch[x], **random_streams, **apply_kwargs)
        return loss(outputs, batch[label])

    return objective_with_key if rngs else objective


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
