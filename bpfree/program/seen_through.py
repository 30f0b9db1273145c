"""The `stop_gradient`s that say nothing of noise.

They stand next to callbacks, behind the maximum that shifts a softmax, and before the
factors of a matrix by which `jnp.linalg.solve` computes what has a rule of its own.
"""

from bpfree.program import tags, weights
from bpfree.program.flat import Body, Op, Path

_MAXIMA = weights.SHAPES | {"reduce_max", "select_n", "is_finite", "max", "pmax"}


def is_callback(op: Op | None) -> bool:
    return op is not None and op.name.endswith("callback")


def held_stops(body: Body) -> set[Path]:
    """Paths of the stop_gradients that say what is a constant to noise, too."""
    made = {v: op for op in body.ops for v in op.outs}
    asked = {v for op in body.ops if is_callback(op) for v in op.ins} | _factors(body)
    stops = (op for op in body.ops if op.name == "stop_gradient")
    return {op.path for op in stops if not _passes_noise(op, made, asked)}


def _passes_noise(op: Op, made: dict[int, Op], asked: set[int]) -> bool:
    """Whether a stop_gradient says nothing about noise.

    It does not next to what has no derivative that could be stopped: in front of it
    (`asked` are the values that callbacks take, and factors), or on a callback's answer.
    """
    callback = op.outs[0] in asked or is_callback(made.get(op.ins[0]))
    return callback or _is_maximum(op, made)


def _factors(body: Body) -> set[int]:
    """Values that serve the solver of a `custom_linear_solve` alone.

    Its derivative is that of the product it solves for, and takes the matrix itself.
    """
    others = set(body.outs)  # what serves anything else
    for op in reversed(body.ops):
        serves = [others.isdisjoint(op.outs)] * len(op.ins)
        if op.name == "custom_linear_solve":
            serves = tags.solver_operands(op.eqn.params, len(op.ins))
        others |= {v for v, only in zip(op.ins, serves, strict=True) if not only}
    return {v for op in body.ops for v in op.outs} - others


def _is_maximum(op: Op, made: dict[int, Op]) -> bool:
    """Whether a stop_gradient is that of a maximum, by which a softmax is shifted."""
    ops, seen = [made.get(op.ins[0])], False
    while ops:
        source = ops.pop()
        if source is None:
            continue
        if source.name not in _MAXIMA:
            return False
        if source.name == "reduce_max":
            seen = True
        else:
            ops += [made.get(v) for v in source.ins]
    return seen
