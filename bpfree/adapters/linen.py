"""Mark the nodes of Flax Linen models that nobody edited.

The tags are put in while the model is traced, by Linen's method interceptors. They are
operations and not variables, so they need no collection and survive `nn.scan`, `nn.RNN`,
`nn.vmap` and `nn.remat`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from bpfree.adapters.batch_norm import held_statistics
from bpfree.adapters.noise import Noise, choose
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


def tag_linen(
    fn: Callable[..., Any], where: Where | None = None, noise: Noise = "logit"
) -> Callable[..., Any]:
    """`fn` with the outputs of all Linen layers run inside it marked as nodes.

    Marks the output of every Dense, DenseGeneral, Einsum, Conv, ConvLocal, ConvTranspose
    and Embed (norms belong to the next node's block) under the module's path, and its
    input as what its kernel multiplies. The batch axis is the first one of the output.
    The batch statistics of every BatchNorm are held (`bpfree.hold`).

    Args:
      fn: any function that applies Linen modules, such as `model.apply`.
      where: predicate on the module; False leaves it unmarked, so that it becomes part of
        the next node's block.
      noise: "logit" marks the output; "weight" marks the layer's parameters instead, so
        that they are perturbed, once for the whole batch (at every call of a layer that
        is called more than once); "auto" chooses weights for a convolution with fewer
        kernel entries than output entries per example (C_in k^2 < H' W'), and so for any
        layer; or a function from the module to one of these.
    """

    def interceptor(inside, next_fun, args, kwargs, context):
        if inside:
            return next_fun(*args, **kwargs)
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            return _batch_norm(context.module, next_fun, *args, **kwargs)
        kernel = _kernel_name(context)
        if kernel is None or (where is not None and not where(context.module)):
            return next_fun(*args, **kwargs)
        path = "/".join(context.module.path)
        if not args:  # called by keyword: Dense(inputs=x), Embed.attend(query=x)
            first, x = next(iter(kwargs.items()))
            kwargs = {k: v for k, v in kwargs.items() if k != first}
            args = (x,)
        if noise != "logit" and not context.module.is_initializing():
            inside.append(context.module)
            output = _with_noisy_weights(noise, context, kernel, path, args, kwargs)
            inside.pop()
            if output is not None:
                return output
        x, *rest = args
        if jax.numpy.issubdtype(jax.numpy.result_type(x), jax.numpy.inexact):
            x = kernel_input(x, f"{path}/{kernel}")
        return node(next_fun(x, *rest, **kwargs), path or type(context.module).__name__)

    def tagged(*args, **kwargs):
        inside: list[nn.Module] = []  # of layers whose parameters are nodes already
        with nn.intercept_methods(functools.partial(interceptor, inside)):
            return fn(*args, **kwargs)

    return tagged


def _kernel_name(context: nn.module.InterceptorContext) -> str | None:
    if context.method_name not in _METHODS:
        return None
    names = (kernel for cls, kernel in PRODUCTS if isinstance(context.module, cls))
    return next(names, None)


def _with_noisy_weights(noise: Noise, context, kernel: str, path: str, args, kwargs):
    """The layer with a node on each of its parameters, or None to mark its output."""
    module, method = context.module, context.method_name
    alone = module.clone(parent=None, name=None)
    variables = module.variables
    params = variables["params"]

    def call(params):
        return alone.apply(
            {**variables, "params": params}, *args, method=method, **kwargs
        )

    output = jax.eval_shape(call, params)
    if choose(noise, module, params[kernel].shape, output.shape) == "logit":
        return None
    name = path or type(module).__name__
    return call({k: node(v, f"{name}/{k}", batch_axis=None) for k, v in params.items()})


def _batch_norm(norm: nn.BatchNorm, next_fun, x, use_running_average=None, *, mask=None):
    """The norm with its batch statistics held."""
    flag = use_running_average
    running = nn.merge_param("use_running_average", norm.use_running_average, flag)
    plain = next_fun(x, flag, mask=mask)  # moves the running statistics
    if running or norm.is_initializing():
        return plain
    mean, var = held_statistics(norm, x, mask, "/".join(norm.path))
    alone = norm.clone(parent=None, name=None, use_running_average=True)
    statistics = {"batch_stats": {"mean": mean, "var": var}}
    return alone.apply({**norm.variables, **statistics}, x)


def bind(
    model: nn.Module,
    where: Where | None,
    noise: Noise,
    rngs: tuple[str, ...],
    mutable: tuple[str, ...],
    options: dict[str, Any],
) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """`(params, state, x, key) -> (outputs, new state)`; see `bpfree.adapters`."""
    apply = tag_linen(model.apply, where, noise)

    def bound(params, state, x, key):
        if isinstance(params, Mapping) and set(params) == {"params"}:
            raise ValueError(
                'params is a whole variables dict; pass model.init(...)["params"]'
            )
        keys = jax.random.split(key, len(rngs)) if rngs else ()
        streams = dict(zip(rngs, keys, strict=True))
        variables = {**state, "params": params}
        return apply(variables, x, rngs=streams, mutable=list(mutable), **options)

    return bound
