"""The rule of a `custom_vjp`, transposed to one for tangents; see `tangents`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from bpfree.program import tags


def transposed(eqn, invals) -> list[Any]:
    """A `custom_vjp` call, as a function of its inexact arguments that has tangents."""
    moving = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.invars]
    inexact = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars]

    def call(*primals):
        """Its results: the inexact ones, and the others."""
        given = iter(primals)
        pairs = zip(moving, invals, strict=True)
        outs = tags.bind_eqn(eqn, [next(given) if m else x for m, x in pairs])
        others = [y for y, i in zip(outs, inexact, strict=True) if not i]
        return [y for y, i in zip(outs, inexact, strict=True) if i], others

    forward = jax.custom_jvp(call)

    def derivative(primals, tangents):
        moved = [not isinstance(t, SymbolicZero) for t in tangents]

        def of_moved(*some):  # a rule may refuse to be asked about what stands still
            given = iter(some)
            pairs = zip(moved, primals, strict=True)
            return call(*[next(given) if m else x for m, x in pairs])

        some = [x for m, x in zip(moved, primals, strict=True) if m]
        outs, rule, others = jax.vjp(of_moved, *some, has_aux=True)
        directions = tuple(t for m, t in zip(moved, tangents, strict=True) if m)
        try:
            (change,) = jax.linear_transpose(rule, outs)(directions)
        except (NotImplementedError, ValueError) as error:  # ValueError: a while loop
            where = tags.body_of(eqn)[0].debug_info.func_src_info
            raise ValueError(
                f"the backward rule of the custom_vjp {where} is not linear in the "
                f"cotangent, or has no transpose ({error}), so it has no directional "
                "derivative. Use an estimator of finite differences, such as "
                "bpfree.node_perturbation."
            ) from error
        still = [np.zeros(y.shape, jax.dtypes.float0) for y in others]
        return (outs, others), (change, still)

    forward.defjvp(derivative, symbolic_zeros=True)

    outs, others = forward(*[x for m, x in zip(moving, invals, strict=True) if m])
    found, rest = iter(outs), iter(others)
    return [next(found) if i else next(rest) for i in inexact]
