"""Products in the one layout that XLA's CPU backend runs fast, or without a copy.

Autodiff writes a weight gradient as a convolution with exchanged dimension numbers.
Outside loops XLA brings it into its own layout; inside a `while` body it does not, and
falls back to plain loops, some 45 times slower (BUILD_NOTES). Transposing by hand gives
both the same speed. Of a dense layer's weight gradient over time and batch, it copies a
factor.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.program import rewriting, tags


def canonical_convs(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with every convolution as NHWC, HWIO -> NHWC, those of its scans included."""
    return rewriting.rewritten(fn, canonical, of_convolutions)


def canonical(eqn, invals) -> list[Any]:
    if eqn.primitive is lax.scan_p and tags.contains(tags.body_of(eqn)[0], _is_conv):
        return rewriting.replay_inside(eqn, invals, canonical)
    if not _is_conv(eqn.primitive):
        return tags.bind_eqn(eqn, invals)
    params = dict(eqn.params)
    numbers = params.pop("dimension_numbers")
    spatial = len(numbers.lhs_spec) - 2
    channels_last = (0, spatial + 1, *range(1, spatial + 1))  # where N, C, space stand
    kernel = (spatial + 1, spatial, *range(spatial))  # where O, I, space stand
    lhs = _arrange(invals[0], numbers.lhs_spec, channels_last)
    rhs = _arrange(invals[1], numbers.rhs_spec, kernel)
    numbers = lax.ConvDimensionNumbers(channels_last, kernel, channels_last)
    out = eqn.primitive.bind(lhs, rhs, dimension_numbers=numbers, **params)
    return [_arrange(out, channels_last, eqn.params["dimension_numbers"].out_spec)]


def _is_conv(primitive) -> bool:
    return primitive is lax.conv_general_dilated_p


of_convolutions = rewriting.holding(_is_conv)


def inputs_first(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, a pull, with the layer's input on the left of its weight gradients.

    XLA's CPU backend copies the left factor of a product over several axes (time and
    batch). Autodiff puts the signal there, of which every kernel has its own; the input
    is the same for all kernels that read it.
    """
    return rewriting.rewritten(fn, _swapped, _of_dots)


_of_dots = rewriting.holding(lambda primitive: primitive is lax.dot_general_p)


def _swapped(eqn, invals) -> list[Any]:
    if eqn.primitive is not lax.dot_general_p:
        return tags.bind_eqn(eqn, invals)
    (left, right), batch = eqn.params["dimension_numbers"]
    if len(left) < 2 or batch[0] or eqn.params["out_sharding"] is not None:
        return tags.bind_eqn(eqn, invals)
    params = eqn.params | {"dimension_numbers": ((right, left), batch)}
    out = lax.dot_general_p.bind(invals[1], invals[0], **params)
    free = invals[1].ndim - len(right)
    return [jnp.moveaxis(out, range(free), range(-free, 0))]


def _arrange(x, spec, wanted):
    """Transpose: the dimension that stands at spec[i] comes to wanted[i]."""
    order = np.empty(len(spec), int)
    order[list(wanted)] = spec
    return jnp.transpose(x, order)
