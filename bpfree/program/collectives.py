"""Collectives over an axis that `vmap` maps, written as the reductions that they are.

`lax.psum(x, "batch")` under `jax.vmap(..., axis_name="batch")` is a sum along an axis of
an array, and JAX writes it as a collective with a number in the place of a name. As a
sum it is a statistic of the batch: the synchronised batch normalisation of Equinox, Haiku
and Flax.
"""

from typing import Any

from jax import lax

from bpfree.program import rewriting, tags

_REDUCTIONS = {"psum": lax.reduce_sum, "pmax": lax.reduce_max, "pmin": lax.reduce_min}


def as_reductions(jaxpr, consts, args) -> tuple[Any, Any]:
    """(jaxpr, constants) of a program in which no collective stands for a reduction.

    Args:
      args: shapes of the inputs, flat.
    """
    if not _has_reduction(jaxpr):
        return jaxpr, consts

    def reduced(*args):
        return rewriting.replay(jaxpr, consts, args, _bind)

    return rewriting.to_jaxpr(reduced, args)[:2]


def _has_reduction(jaxpr) -> bool:
    return tags.contains(jaxpr, lambda primitive: primitive.name in _REDUCTIONS)


def _bind(eqn, invals) -> list[Any]:
    reduction = _REDUCTIONS.get(eqn.primitive.name)
    if reduction is None:
        return rewriting.bind_inside(eqn, invals, _bind, _has_reduction)
    axes, groups = eqn.params["axes"], eqn.params["axis_index_groups"]
    if groups is None and all(isinstance(axis, int) for axis in axes):
        return [reduction(x, tuple(axes)) for x in invals]
    return tags.bind_eqn(eqn, invals)
