"""What the kernels of a program multiply, read from its jaxpr.

A kernel is a parameter that enters a `dot_general` or a `conv_general_dilated`, after
transposes and casts at most, against a value that is computed. No mark is needed: plain
JAX, Flax Linen and NNX models look the same here. Bodies of `jit`, `remat`, `scan` and
custom derivatives are read, those of `cond` and `while` are not; a kernel stacked for
`scan` keeps its stack, and a kernel of several products pools their inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bpfree.decorrelation.layout import Layout, Structure
from bpfree.decorrelation.rows import PRODUCTS, Draw, Found, Kernel
from bpfree.decorrelation.windows import drawn
from bpfree.program import rewriting, tags
from bpfree.program.marking import param_paths
from bpfree.program.trace import arguments, check_losses, split_aux

_OPENED = tags.REMAT | {"custom_jvp_call", "custom_vjp_call"}


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


def evenly_spaced(loss_fn, params, batch, fraction: float, shared: Sequence[str]) -> Any:
    """A share of the batch's examples, evenly spaced; `shared` keys hold no examples."""
    args = arguments(loss_fn, params, batch, jax.random.key(0))
    losses, _ = split_aux(jax.eval_shape(loss_fn, *args))
    size = check_losses(losses, axes=2)
    if size is None or fraction == 1:
        return batch
    kept = max(1, round(fraction * size))
    stride = size // kept

    def cut(leaf):
        whole = jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != size
        return leaf if whole else leaf[: kept * stride : stride]

    if not isinstance(batch, Mapping):
        return jax.tree.map(cut, batch)
    return {k: v if k in shared else jax.tree.map(cut, v) for k, v in batch.items()}


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
        if len(kernels) == 1 and name in PRODUCTS:
            path = kernels[0].path
            found = PRODUCTS[name](eqn, invals, draw.of(path), structure)
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
