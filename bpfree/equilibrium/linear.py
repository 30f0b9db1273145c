"""Dense and convolutional layers as real linear maps with their transposes.

States may be complex, weights are real: `on_rows` applies a real map to the real and the
imaginary rows in one call, which is half the arithmetic of a complex product. The kernel
of a transposed convolution is flipped here, once, outside of any loop: the transpose that
autodiff writes runs some ten times slower inside XLA's CPU loops.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Map = Callable[[jax.Array], jax.Array]


class Linear(NamedTuple):
    """A layer with its parameters: `forward(h) = A h + b`, `transposed(v) = A^T v`."""

    forward: Map
    transposed: Map


def bind(module: nn.Module, params: Any, shape: tuple[int, ...]) -> Linear:
    """The maps of a Dense or Conv layer for inputs (B, *shape), real or complex.

    Dense flattens its input. Raises TypeError for other modules, ValueError for options
    of Conv that have no plain transpose here.
    """
    maps = {nn.Dense: _dense, nn.Conv: _conv}.get(type(module))
    if maps is None:
        raise TypeError(
            f"layered() takes flax.linen Dense and Conv layers, got "
            f"{type(module).__name__}; write other energies as a function, "
            "bpfree.primitive(phi, ...)"
        )
    product, transposed = maps(module, params["kernel"], shape)
    bias = params.get("bias")

    def forward(h):
        z = on_rows(product, h)
        if bias is None:
            return z
        return z + bias.reshape((1,) * (z.ndim - 1) + bias.shape).astype(z.dtype)

    return Linear(forward, lambda v: on_rows(transposed, v))


def on_rows(real_map: Map, h: jax.Array) -> jax.Array:
    """A real linear map of (B, ...) states: one call on real and imaginary rows."""
    if not jnp.iscomplexobj(h):
        return real_map(h)
    rows = real_map(jnp.concatenate([h.real, h.imag]))
    return lax.complex(*jnp.split(rows, 2))


def init(module: nn.Module, key: jax.Array, like: jax.Array) -> tuple[Any, jax.Array]:
    """(params, zeros of the output's shape) for an input of the shape of `like`."""
    if isinstance(module, nn.Dense):
        like = like.reshape(like.shape[0], -1)
    params = module.init(key, like)["params"]
    out: Any = jax.eval_shape(module.apply, {"params": params}, like)
    return params, jnp.zeros(out.shape, out.dtype)


def _dense(module, kernel, shape):
    def product(h):
        return h.reshape(h.shape[0], -1) @ kernel

    def transposed(v):
        h = lax.dot_general(v, kernel, (((1,), (1,)), ((), ())))
        return h.reshape(v.shape[0], *shape)

    return product, transposed


def _conv(module, kernel, shape):
    n = kernel.ndim - 2
    padding = module.padding
    refused = {
        "feature_group_count": module.feature_group_count != 1,
        "input_dilation": _each(module.input_dilation, n) != [1] * n,
        "padding": isinstance(padding, str) and padding not in ("SAME", "VALID"),
        "mask": module.mask is not None,
    }
    if any(refused.values()):
        names = [name for name, wrong in refused.items() if wrong]
        raise ValueError(f"layered() cannot transpose a Conv with this {names[0]}")
    strides, dilation = _each(module.strides, n), _each(module.kernel_dilation, n)
    sizes = shape[:n]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:n], dilation, strict=True)]
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(sizes, reach, strides, padding)
    else:
        pads = [(p, p) if isinstance(p, int) else tuple(p) for p in _each(padding, n)]
    axes = (0, n + 1, *range(1, n + 1))
    numbers = lax.ConvDimensionNumbers(axes, (n + 1, n, *range(n)), axes)
    options = {"rhs_dilation": dilation, "dimension_numbers": numbers}
    flipped = jnp.flip(kernel, tuple(range(n))).swapaxes(-1, -2)
    back = []
    for size, r, s, (low, high) in zip(sizes, reach, strides, pads, strict=True):
        out = (size + low + high - r) // s + 1
        before = r - 1 - low
        back.append((before, size + r - 1 - ((out - 1) * s + 1) - before))

    def product(h):
        return lax.conv_general_dilated(h, kernel, strides, pads, **options)

    def transposed(v):
        return lax.conv_general_dilated(
            v, flipped, (1,) * n, back, lhs_dilation=strides, **options
        )

    return product, transposed


def _each(option, n: int) -> list:
    """One entry per spatial axis out of None, a number or a sequence."""
    if option is None:
        return [1] * n
    return [option] * n if isinstance(option, int) else list(option)
