"""Operations of other packages, of which JAX knows nothing but their rules.

`lineax.linear_solve` is one: a primitive without a jaxpr. What it computes is read from
its implementation, traced as JAX traces it to compile it.
"""

from typing import Any

import jax

from bpfree.program import tags

_OURS = ("jax", "jaxlib", "functools", "bpfree")


def is_foreign(primitive) -> bool:
    """Whether another package than JAX says what a primitive computes."""
    function = primitive.impl
    while hasattr(function, "func"):
        function = function.func
    module = getattr(function, "__module__", None) or "jax"
    return module.split(".")[0] not in _OURS


def has_own_rule(primitive) -> bool:
    """Whether its derivative is not that of what it computes."""
    return primitive.name.startswith("custom_") or is_foreign(primitive)


def body_of(eqn) -> Any:
    """The jaxpr of what a foreign operation computes; None if nothing more is known."""
    if not is_foreign(eqn.primitive):
        return None

    def computed(*args):
        return eqn.primitive.impl(*args, **eqn.params)

    try:
        closed = jax.make_jaxpr(computed)(*_shapes(eqn))
    except Exception:  # a kernel that runs on arrays only, say: it stays closed
        return None
    itself = any(inner.primitive is eqn.primitive for inner in closed.jaxpr.eqns)
    return None if itself else closed


def has_derivative(eqn, i: int) -> bool:
    """Whether a rule has a derivative for operand i, neither zero nor an error."""

    def tangents(direction, *args):
        def of_operand(x):
            return tags.bind_eqn(eqn, [*args[:i], x, *args[i + 1 :]])

        return jax.jvp(of_operand, (args[i],), (direction,))[1]

    shapes = _shapes(eqn)
    if not jax.numpy.issubdtype(shapes[i].dtype, jax.numpy.inexact):
        return False
    try:
        jaxpr = jax.make_jaxpr(tangents)(shapes[i], *shapes).jaxpr
    except Exception:  # the rule's own refusal
        return False
    return tags.dce(jaxpr, [True] * len(jaxpr.outvars))[1][0]


def _shapes(eqn) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
