"""Is a part of an energy holomorphic? Read from its jaxpr at complex arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jcore

from bpfree.program import tags

# Primitives with no complex derivative. `real` and `imag` too: whoever takes a number
# apart and uses one half only is not holomorphic.
BROKEN = frozenset(
    "abs argmax argmin ceil clamp conj cummax cummin eq floor ge gt imag is_finite le "
    "lt max min ne nextafter real reduce_max reduce_min reduce_precision rem round sign "
    "sort reduce_window_max reduce_window_min select_and_gather_add top_k".split()
)


def check_parts(parts: Mapping[str, tuple[Callable[..., Any], Any]]) -> None:
    """`check` for every part of an energy, {name: (function, example)}."""
    for name, (part, example) in parts.items():
        check(name, part, example)


def check(name: str, fn: Callable[..., Any], example: Any) -> None:
    """Raise ValueError, naming the part, if `fn` at complex arguments is not holomorphic.

    What only reaches the output through `stop_gradient` is let pass: the maximum that
    stabilises a softmax cancels.
    """
    args = jax.tree.map(
        lambda a: jnp.zeros(a.shape, np.result_type(a.dtype, np.complex64)), example
    )
    try:
        jaxpr = tags.open_jaxpr(jax.make_jaxpr(fn)(args))[0]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not take complex states ({error}). {_ADVICE}"
        ) from error
    found = _broken(jaxpr, [True] * len(jaxpr.outvars))
    if found:
        raise ValueError(f"{name} is not holomorphic: it contains {found!r}. {_ADVICE}")


_ADVICE = (
    "Complex nudging (holomorphic with more than 2 points) needs holomorphic "
    "activations, poolings and costs: use dsilu or shifted_sigmoid, softmax_pool or "
    "average_pool, or nudge on the real axis with centred(beta)."
)


def _broken(jaxpr, wanted: list[bool]) -> str | None:
    """Name of a broken primitive on a path to the wanted outputs, or None."""
    pairs = zip(jaxpr.outvars, wanted, strict=True)
    live = {v for v, keep in pairs if keep and not isinstance(v, jcore.Literal)}
    for eqn in reversed(jaxpr.eqns):
        name = eqn.primitive.name
        if name == "stop_gradient" or not live.intersection(eqn.outvars):
            continue
        if name in BROKEN and jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.inexact):
            return name
        for inner in tags.sub_jaxprs(eqn):
            if found := _broken(inner, [True] * len(inner.outvars)):
                return found
        live.update(v for v in eqn.invars if not isinstance(v, jcore.Literal))
    return None
