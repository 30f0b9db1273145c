"""What the kernels of a program multiply, read from its jaxpr.

A kernel is a parameter that enters a `dot_general` or a `conv_general_dilated`, after
transposes and casts at most, against a value that is computed. No mark is needed: plain
JAX, Flax Linen and NNX models look the same here. Bodies of `jit`, `remat`, `scan` and
custom derivatives are read, those of `cond` and `while` are not; a kernel stacked for
`scan` keeps its stack, and a kernel of several products pools their inputs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.decorrelation.layout import Layout, make_layout
from bpfree.decorrelation.windows import drawn, windows
from bpfree.program import rewriting, tags
from bpfree.program.marking import param_paths
from bpfree.program.trace import arguments, name_hash

_OPENED = tags.REMAT | {"custom_jvp_call", "custom_vjp_call"}


class Structure(NamedTuple):
    """What of a kernel's inputs shares a matrix; see `layout.make_layout`."""

    block: int | None = None
    channel_only: bool = False


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


Taps = dict[str, Found]


def layers(loss_fn, params, batch, structure: Structure) -> dict[str, Layout]:
    """{path: layout} of the kernels of a loss function; values may be abstract."""
    taps: Taps = {}

    def read(params, batch, key):
        taps.update(_read(loss_fn, params, batch, key, Draw(key, 1), structure))

    jax.eval_shape(read, params, batch, jax.random.key(0))
    found = {path: taps[path].layout for path in leaves(params) if path in taps}
    return {path: layout for path, layout in found.items() if layout is not None}


def record(
    loss_fn, params, batch, key: jax.Array, cap: int, layouts: dict[str, Layout]
) -> dict[str, jax.Array]:
    """{path: inputs (G, n, d)}, at most `cap` rows of every product, drawn at random.

    One forward pass. Consumes the key.
    """
    loss_key, draw_key = jax.random.split(key)
    taps = _read(loss_fn, params, batch, loss_key, Draw(draw_key, cap), Structure())
    return {path: layout.inputs(taps[path].rows) for path, layout in layouts.items()}


def leaves(params) -> dict[str, Any]:
    """{path: leaf}; raises ValueError for what is not real floating."""
    return dict(zip(param_paths(params), jax.tree.leaves(params), strict=True))


def _read(loss_fn, params, batch, key, draw: Draw, structure: Structure) -> Taps:
    args = arguments(loss_fn, params, batch, key)
    jaxpr, consts, _ = rewriting.to_jaxpr(loss_fn, args)
    values = [
        Kernel(jnp.asarray(p), path, tuple(range(jnp.ndim(p))))
        if jnp.ndim(p) > 1 and jnp.size(p)
        else p
        for path, p in leaves(params).items()
    ]
    taps: Taps = {}
    rest = jax.tree.leaves(args[1:])
    rewriting.replay(jaxpr, consts, [*values, *rest], _reader(taps, draw, structure))
    return taps


# ---------------------------------------------------------------- following a kernel


def _reader(taps: Taps, draw: Draw, structure: Structure) -> rewriting.Bind:
    def bind(eqn, invals) -> list[Any]:
        name = eqn.primitive.name
        kernels = [v for v in invals if isinstance(v, Kernel)]
        if name in _OPENED and (kernels or name in tags.REMAT):
            return rewriting.replay(*tags.body_of(eqn), invals, bind)
        if name == "scan" and kernels:
            return _scan(eqn, invals, taps, draw, structure)
        outs = tags.bind_eqn(eqn, _plain(invals))
        if kernels and name in _FOLLOWED:
            return [_FOLLOWED[name](kernels[0]._replace(value=outs[0]), eqn)]
        if len(kernels) == 1 and name in _PRODUCTS:
            path = kernels[0].path
            found = _PRODUCTS[name](eqn, invals, draw.of(path), structure)
            if found is not None:
                taps[path] = _pooled(taps.get(path), found)
        return outs

    return bind


def _plain(values) -> list[Any]:
    return [v.value if isinstance(v, Kernel) else v for v in values]


def _transposed(kernel: Kernel, eqn) -> Kernel:
    axes = tuple(kernel.axes[i] for i in eqn.params["permutation"])
    return kernel._replace(axes=axes)


def _same(kernel: Kernel, eqn) -> Kernel:
    return kernel


_FOLLOWED: dict[str, Callable[[Kernel, Any], Kernel]] = {
    "transpose": _transposed,
    "convert_element_type": _same,
    "copy": _same,
    "stop_gradient": _same,
}


def _pooled(old: Found | None, new: Found) -> Found:
    if old is None:
        return new
    if old.layout != new.layout:
        return Found(old.rows, None)
    return Found(jnp.concatenate([old.rows, new.rows], axis=1), old.layout)


def _scan(eqn, invals, taps: Taps, draw: Draw, structure: Structure) -> list[Any]:
    """A kernel that is scanned over gains a stack axis; others pool over the steps."""
    consts, carry, xs = tags.split_scan(eqn.params, invals)
    layouts: dict[str, Layout | None] = {}

    def evaluate(jaxpr, closed, args, _):
        inside: Taps = {}
        first = len(args) - len(xs)
        here = [_slice(x, value) for x, value in zip(xs, args[first:], strict=True)]
        bind = _reader(inside, draw, structure)
        outs = _plain(rewriting.replay(jaxpr, closed, [*args[:first], *here], bind))
        layouts.update({path: found.layout for path, found in inside.items()})
        return outs, {path: found.rows for path, found in inside.items()}

    given = [*consts, *_plain(carry), *_plain(xs)]
    outs, rows = rewriting.scanned(rewriting.plain_scan, eqn, given, {}, evaluate)
    stacked = {x.path for x in xs if isinstance(x, Kernel)}
    for path, r in rows.items():  # (steps, g, n, d)
        if path in stacked:
            r = r.reshape(-1, *r.shape[2:])
        else:
            r = jnp.moveaxis(r, 0, 1).reshape(r.shape[1], -1, r.shape[3])
            r = drawn(r, *draw.of(path))
        taps[path] = _pooled(taps.get(path), Found(r, layouts[path]))
    return outs


def _slice(x: Any, value: jax.Array) -> Any:
    if not isinstance(x, Kernel) or value.ndim < 2:
        return value
    taken = (x.axes[0], x.value.shape[0])
    return Kernel(value, x.path, x.axes[1:], (*x.stack, taken))


# ----------------------------------------------------------------------- the products


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


_PRODUCTS: dict[str, Callable[..., Found | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
}


def _layout_of(
    kernel: Kernel, structure: Structure, outs, ins, blocks=(), offsets=(), groups=1
) -> Layout:
    """The layout of the parameter, from the axes of the product's operand."""
    sizes = {
        **dict(zip(kernel.axes, kernel.value.shape, strict=True)),
        **dict(kernel.stack),
    }

    def axes(part):
        return [kernel.axes[i] for i in part]

    return make_layout(
        [sizes[i] for i in range(len(sizes))],
        blocks=[axis for axis, _ in kernel.stack] + axes(blocks),
        outs=axes(outs),
        ins=axes(ins),
        offsets=axes(offsets),
        groups=groups,
        block=structure.block,
        channel_only=structure.channel_only,
    )
