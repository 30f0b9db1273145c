"""Tangents of functions whose derivative is written for reverse mode alone.

A `custom_vjp` has a rule R that takes cotangents of its results y to those of its
arguments x, and none for tangents. But R is linear, so that its transpose is one:

    x_bar = R y_bar        dy = R^T dx

Surrogate spikes and straight-through rounding thus have the directional derivatives that
forward gradients, derivative="jvp" and the predictors of learned feedback read.
"""

from typing import Any

from bpfree.program import rewriting, tags
from bpfree.program.cotangents import transposed
from bpfree.program.trace import LossFn, Program


def known(program: Program) -> Program:
    """The same program, of which every function has tangents."""
    if not tags.has_custom_vjp(program.jaxpr):
        return program
    return program._replace(bind=_bind)


def with_tangents(loss_fn: LossFn) -> LossFn:
    """The same function, of which every function that it calls has tangents."""
    return rewriting.rewritten(loss_fn, _bind)


def _bind(eqn, invals) -> list[Any]:
    if tags.is_custom_vjp(eqn.primitive):
        return transposed(eqn, invals)
    return rewriting.bind_inside(eqn, invals, _bind, tags.has_custom_vjp)
