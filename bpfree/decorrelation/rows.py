"""The inputs of a product with a kernel, as rows, and the layout of that kernel.

A product is a `dot_general` or a `conv_general_dilated`, one of whose operands is a
parameter. Its other operand, reshaped, has a row for each time that the kernel's matrix
is applied: for each example, position or window.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from bpfree.decorrelation.layout import Layout, Structure, make_layout
from bpfree.decorrelation.windows import drawn, windows
from bpfree.program.trace import name_hash


class Draw(NamedTuple):
    """Which rows are read: at most `cap` of a product, drawn with `key`."""

    key: jax.Array
    cap: int

    def of(self, path: str) -> "Draw":
        return Draw(jax.random.fold_in(self.key, name_hash(path)), self.cap)


class Kernel(NamedTuple):
    """A parameter on its way to a product.

    Attributes:
      value: what it is here.
      path: of the parameter.
      axes: the parameter's axis that each axis of `value` is.
      stack: (axis, size) of those that enclosing scans have taken away.
    """

    value: jax.Array
    path: str
    axes: tuple[int, ...]
    stack: tuple[tuple[int, int], ...] = ()


class Found(NamedTuple):
    """Inputs of one kernel: rows (g, n, d) as its product reads them, and its layout."""

    rows: jax.Array
    layout: Layout | None  # None: two products that read the kernel differently


def _dot(eqn, invals, draw: Draw, structure: Structure) -> Found | None:
    side = int(isinstance(invals[1], Kernel))
    kernel, x = invals[side], invals[1 - side]
    contracted, batched = eqn.params["dimension_numbers"]
    if not contracted[0]:
        return None
    ins, stack = contracted[side], batched[side]
    outs = [i for i in range(kernel.value.ndim) if i not in (*ins, *stack)]
    x_ins, x_stack = contracted[1 - side], batched[1 - side]
    free = [i for i in range(x.ndim) if i not in (*x_ins, *x_stack)]
    g, n, d = (math.prod(x.shape[i] for i in part) for part in (x_stack, free, x_ins))
    rows = x.transpose([*x_stack, *free, *x_ins]).reshape(g, n, d)
    layout = _layout_of(kernel, structure, blocks=stack, outs=outs, ins=ins)
    return Found(drawn(rows, *draw), layout)


def _conv(eqn, invals, draw: Draw, structure: Structure) -> Found | None:
    x, kernel = invals
    params = eqn.params
    if not isinstance(kernel, Kernel) or params["batch_group_count"] > 1:
        return None
    groups = params["feature_group_count"]
    out, channel, *space = params["dimension_numbers"].rhs_spec
    layout = _layout_of(
        kernel, structure, outs=[out], ins=[channel], offsets=space, groups=groups
    )
    sizes = tuple(kernel.value.shape[i] for i in space)
    rows = windows(x, sizes, params, *draw)  # (n, channels, offsets)
    return Found(rows.reshape(len(rows), groups, -1).swapaxes(0, 1), layout)


PRODUCTS: dict[str, Callable[..., Found | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
}


def _layout_of(
    kernel: Kernel, structure: Structure, outs, ins, blocks=(), offsets=(), groups=1
) -> Layout:
    """The layout of the parameter, from the axes of the product's operand."""
    sizes = dict(zip(kernel.axes, kernel.value.shape, strict=True)) | dict(kernel.stack)

    def axes(part):
        return [kernel.axes[i] for i in part]

    return make_layout(
        [sizes[i] for i in range(len(sizes))],
        blocks=[axis for axis, _ in kernel.stack] + axes(blocks),
        outs=axes(outs),
        ins=axes(ins),
        offsets=axes(offsets),
        groups=groups,
        structure=structure,
    )
