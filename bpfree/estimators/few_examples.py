"""A clean pass of every n-th example of a batch, for what can do with fewer."""

from collections.abc import Callable
from typing import Any

import jax

from bpfree.estimators.clean_pass import Clean
from bpfree.program import tangents
from bpfree.program.trace import Program


def every(clean: Clean, n: int, trace: Callable[[tuple], Program]) -> Clean:
    """The clean pass of the examples 0, n, 2 n, ..., whose node values are at hand.

    Arrays of the batch have the examples on their first axis; those whose first axis has
    another length (the state of a norm) belong to all. What is held is computed anew.

    Args:
      trace: `args -> program`, as the clean pass was traced.

    Raises:
      ValueError: n does not divide the number of examples, or the loss function has other
        nodes, or nodes of other shapes, for a batch of fewer examples.
    """
    batch_size = clean.program.batch_size
    if n < 1 or batch_size is None or batch_size % n:
        raise ValueError(f"fit_stride={n} must divide the batch of {batch_size} examples")
    params, batch, *key = clean.args

    def few(a: Any) -> Any:
        return _few(a, n, 0) if a.shape[:1] == (batch_size,) else a

    args = (params, jax.tree.map(few, batch), *key)
    values = {
        s.name: clean.values[s.name]
        if s.batch_axis is None
        else _few(clean.values[s.name], n, s.batch_axis)
        for s in clean.program.nodes
    }
    try:
        program = trace(args)
    except (TypeError, ValueError) as error:
        raise _refused(n, f"{type(error).__name__}: {error}") from error
    shapes = {s.name: s.shape for s in program.nodes}
    if shapes != {name: v.shape for name, v in values.items()}:
        raise _refused(n, f"its nodes are then {shapes}")
    return Clean(tangents.known(program), args, values)


def _few(a: jax.Array, n: int, axis: int) -> jax.Array:
    """Entries 0, n, ... of an axis; a reshape leaves each device its own examples."""
    shape = (*a.shape[:axis], a.shape[axis] // n, n, *a.shape[axis + 1 :])
    return a.reshape(shape)[(slice(None),) * (axis + 1) + (0,)]


def _refused(n: int, why: str) -> ValueError:
    return ValueError(
        f"fit_stride={n} takes one example in {n} along the first axes of the batch's "
        f"arrays, which this loss function does not allow ({why}). Use fit_stride=1."
    )
