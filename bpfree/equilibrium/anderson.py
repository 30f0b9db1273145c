r"""Anderson acceleration of the sweeps, for each example by itself.

With the last m states h_i and what a sweep adds to them, f_i = sweep(h_i) - h_i,

    h <- sum_i a_i (h_i + f_i),    a = argmin |sum_i a_i f_i|^2,  sum_i a_i = 1,

in the Hermitian norm for complex phases. It takes the fewest sweeps, and does not care
whether a fixed point is stable: see `guarded`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.equilibrium.energy import Dynamics, States
from bpfree.equilibrium.relaxation import Relaxed, Settled, as_rows, norm, relax, sweep

_POLISH = 5  # plain sweeps that show whether a fixed point is stable


def guarded(
    net: Dynamics,
    points: jax.Array | None,
    start: States,
    *,
    memory: int,
    factor: jax.Array,
    limit: int,
    settled: Settled | None = None,
    **options: Any,
) -> Relaxed:
    """Accelerated sweeps, then plain ones, which may not move away again.

    An example whose plain sweeps grow sat on an unstable fixed point, and is relaxed once
    more from the start without acceleration. Arguments as in `relax`.
    """
    found = accelerate(net, points, start, memory, factor, limit, settled)
    plain = {"factor": factor, **options}
    polished = relax(net, points, found, limit=_POLISH, **plain)
    once_more = relax(net, points, polished.states, limit=1, **plain)
    floor = jnp.finfo(polished.residual.dtype).eps * norm(polished.states)
    leaves = once_more.residual > jnp.maximum(polished.residual, 100 * floor)
    states = tuple(
        jnp.where(as_rows(leaves, s), s, h)
        for s, h in zip(start, once_more.states, strict=True)
    )
    limit = limit if settled is not None else 2
    return relax(net, points, states, limit=limit, settled=settled, **plain)


def accelerate(net, points, start, memory, factor, limit, settled=None) -> States:
    """States after `limit` accelerated sweeps, or when all examples have settled."""
    shapes = [h.shape for h in start]
    x = _flat(start)
    kinds = x.dtype

    def step(carry):
        t, x, xs, fs, _ = carry
        h = _states(x, shapes)
        moved = sweep(net, points, h, net.products(h), factor)[0]
        f = _flat(moved) - x
        xs, fs = xs.at[t % memory].set(x), fs.at[t % memory].set(f)
        used = jnp.arange(memory, dtype=jnp.int32) <= t
        a = _weights(fs, used)
        x = jnp.einsum("kbi,ikbd->kbd", a, xs + fs)
        return t + 1, x, xs, fs, jnp.sqrt(jnp.square(jnp.abs(f)).sum(-1))

    def go_on(carry):
        t, x, *_, residual = carry
        if settled is None:
            return t < limit
        return (t < limit) & ~settled(_states(x, shapes), residual).all()

    empty = jnp.zeros((memory, *x.shape), kinds)
    residual = jnp.full(x.shape[:2], jnp.inf, x.real.dtype)
    return _states(
        lax.while_loop(go_on, step, (jnp.int32(0), x, empty, empty, residual))[1], shapes
    )


def _weights(fs: jax.Array, used: jax.Array) -> jax.Array:
    """a (K, B, m) of the last sweeps fs (m, K, B, D); unused places get zero."""
    gram = jnp.einsum("ikbd,jkbd->kbij", fs.conj(), fs)
    size = jnp.trace(gram.real, axis1=-2, axis2=-1)[..., None, None]
    keep = (used[:, None] & used[None])[None, None]
    eye = jnp.eye(len(used), dtype=gram.dtype)[None, None]
    scaled = gram / jnp.maximum(size, jnp.finfo(size.dtype).tiny).astype(gram.dtype)
    small = 10 * float(jnp.finfo(size.dtype).eps)
    scaled = jnp.where(keep, scaled, 0) + small * eye
    scaled = scaled + jnp.where(used, 0, 1)[None, None, :, None].astype(gram.dtype) * eye
    ones = jnp.broadcast_to(used.astype(gram.dtype), gram.shape[:-1])
    a = jnp.linalg.solve(scaled, ones[..., None])[..., 0]
    return a / a.sum(-1, keepdims=True)


def _flat(states: States) -> jax.Array:
    return jnp.concatenate([h.reshape(*h.shape[:2], -1) for h in states], axis=-1)


def _states(x: jax.Array, shapes) -> States:
    states, start = [], 0
    for shape in shapes:
        size = 1
        for n in shape[2:]:
            size *= n
        states.append(x[..., start : start + size].reshape(shape))
        start += size
    return tuple(states)
