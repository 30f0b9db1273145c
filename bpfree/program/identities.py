"""Identities with a derivative of their own: reversed or scaled gradients.

    y = x,    dy = T(x) dx        by the rule of a `custom_vjp` or `custom_jvp`

Noise would pass such a function unchanged, and a finite difference would not see T. So
the program is read as one of the same value and derivative, of which both are true,

    y = c + T(c) (x - c),    c = stop_gradient(x)

where noisy passes hold c. A rule that is not linear (clipped gradients) is no derivative
of anything.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jcore

from bpfree.program import rewriting, tags
from bpfree.program.cotangents import transposed

_COPIES = ("copy", "copy_p", "optimization_barrier")
_NEUTRAL = {"mul": 1, "add": 0}  # x * 1.0, x + 0.0


def as_lines(jaxpr, consts, args) -> tuple[Any, Any]:
    """(jaxpr, constants) of a program in which these identities are straight lines.

    Args:
      args: shapes of the inputs, flat.
    """
    if not _has_identity(jaxpr):
        return jaxpr, consts

    def lines(*args):
        return rewriting.replay(jaxpr, consts, args, _bind)

    jaxpr, consts, _ = rewriting.to_jaxpr(lines, args)
    return tags.pruned(jaxpr), consts


def check(eqn) -> None:
    """ValueError for an identity that noise reaches, and whose rule is not linear."""
    if is_identity(eqn) and not _is_linear(eqn):
        where = tags.body_of(eqn)[0].debug_info.func_src_info
        raise ValueError(
            f"{where} is an identity whose derivative is not linear (clipped gradients, "
            "say): no noise can follow it. Leave it out of the loss function, or pass "
            "hold_stop_gradient=False to take it for the identity."
        )


def is_identity(eqn) -> bool:
    """Whether a function returns some of its arguments, and its rule changes theirs.

    A rule about another argument says how a value moves that was found in another way;
    one that raises, that a value must not move.
    """
    if not (tags.is_custom_vjp(eqn.primitive) or "custom_jvp" in eqn.primitive.name):
        return False
    sources = _sources(eqn)
    if sources is None:
        return False
    try:
        jaxpr, moving = _pulled(eqn)
    except Exception:  # the rule's own
        return False
    signals = dict(zip([i for i in sources if i in moving], jaxpr.invars, strict=False))
    pairs = list(zip(moving, jaxpr.outvars, strict=True))
    others = [i for i, (at, _) in enumerate(pairs) if at not in signals]
    if any(_reads(jaxpr, i, len(signals)) for i in others):
        return False
    return any(signals.get(at, v) is not v for at, v in pairs)


def _sources(eqn) -> list[int] | None:
    """For each result the number of the argument that it is; None if one is none."""
    jaxpr = tags.body_of(eqn)[0]
    sources = {v: i for i, v in enumerate(jaxpr.invars)}
    for inner in jaxpr.eqns:
        if (x := _passed_on(inner)) in sources:
            sources[inner.outvars[0]] = sources[x]
    known = [not isinstance(v, jcore.Literal) and v in sources for v in jaxpr.outvars]
    return [sources[v] for v in jaxpr.outvars] if known and all(known) else None


def _passed_on(eqn) -> Any:
    """The variable that an equation hands on as it is, or None."""
    if not (eqn.invars and eqn.outvars):
        return None
    x, *others = eqn.invars
    if isinstance(x, jcore.Literal) or x.aval.dtype != eqn.outvars[0].aval.dtype:
        return None
    if eqn.primitive.name in _COPIES and not others:
        return x
    neutral = _NEUTRAL.get(eqn.primitive.name)
    if neutral is None or not isinstance(others[0], jcore.Literal):
        return None
    return x if np.all(others[0].val == neutral) else None


def _has_identity(jaxpr) -> bool:
    return any(
        is_identity(eqn) or any(map(_has_identity, tags.sub_jaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def _bind(eqn, invals) -> list[Any]:
    if is_identity(eqn):
        return _line(eqn, invals)
    return rewriting.bind_inside(eqn, invals, _bind, _has_identity)


def _line(eqn, invals) -> list[Any]:
    """c + T(c) (x - c) for its inexact results; as it stands if T is not to be had."""
    sources = _sources(eqn)
    assert sources is not None
    moving = list(map(_is_inexact, eqn.invars))
    held = [lax.stop_gradient(x) if m else x for m, x in zip(moving, invals, strict=True)]
    moved = [x - c for m, x, c in zip(moving, invals, held, strict=True) if m]
    bind = transposed if tags.is_custom_vjp(eqn.primitive) else tags.bind_eqn
    points, results = _of_inexact(eqn, held, bind)
    try:
        changes = iter(jax.jvp(results, (points,), (moved,))[1])
    except Exception:  # the rule's own refusal, or one that is not linear: see `check`
        return tags.bind_eqn(eqn, invals)
    return [held[j] + next(changes) if moving[j] else invals[j] for j in sources]


def _of_inexact(eqn, invals, bind=tags.bind_eqn) -> tuple[list[Any], Any]:
    """(its inexact arguments, the inexact results as a function of them)."""
    moving = [i for i, v in enumerate(eqn.invars) if _is_inexact(v)]

    def results(some):
        given = dict(enumerate(invals)) | dict(zip(moving, some, strict=True))
        outs = bind(eqn, list(given.values()))
        return [y for y, v in zip(outs, eqn.outvars, strict=True) if _is_inexact(v)]

    return [invals[i] for i in moving], results


def _pulled(eqn) -> tuple[Any, list[int]]:
    """(jaxpr of its rule for cotangents, which of its arguments they are for)."""

    def pulled(signals, invals):
        some, results = _of_inexact(eqn, invals)
        return jax.vjp(results, some)[1](signals)[0]

    signals = [_shape(v) for v in eqn.outvars if _is_inexact(v)]
    jaxpr = jax.make_jaxpr(pulled)(signals, list(map(_shape, eqn.invars))).jaxpr
    moving = [i for i, v in enumerate(eqn.invars) if _is_inexact(v)]
    return tags.pruned(jaxpr), moving


def _reads(jaxpr, number: int, count: int) -> bool:
    """Whether an output depends on one of the first `count` inputs."""
    chosen = [k == number for k in range(len(jaxpr.outvars))]
    return any(tags.dce(jaxpr, chosen)[1][:count])


def _is_linear(eqn) -> bool:
    """Whether its rule has a transpose; one for tangents always does."""
    if not tags.is_custom_vjp(eqn.primitive):
        return True

    def change(invals):
        some, results = _of_inexact(eqn, invals)
        outs, pull = jax.vjp(results, some)
        return jax.linear_transpose(pull, outs)((some,))

    try:
        jax.eval_shape(change, list(map(_shape, eqn.invars)))
    except (NotImplementedError, ValueError):
        return False
    return True


def _shape(v) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)


def _is_inexact(v) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.inexact)
