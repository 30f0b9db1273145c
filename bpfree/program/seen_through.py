"""The `stop_gradient`s that say nothing of noise.

They stand next to callbacks, behind the maximum that shifts a softmax, and before what
an operation with a rule of its own computes with, where the rule is about something
else: the factors of a matrix in `jnp.linalg.solve` and `lineax.linear_solve`.
"""

from bpfree.program import flat, foreign, tags, weights
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


def held_marks(body: Body) -> set[Path]:
    """Paths of the user's `bpfree.hold`s."""
    marks = (op for op in body.ops if op.eqn.primitive is tags.tag_p)
    return {op.path for op in marks if op.eqn.params["kind"] == "hold"}


def _passes_noise(op: Op, made: dict[int, Op], asked: set[int]) -> bool:
    """Whether a stop_gradient says nothing about noise.

    It does not next to what has no derivative that could be stopped: in front of it
    (`asked` are the values that callbacks take, and factors), or on a callback's answer.
    """
    callback = op.outs[0] in asked or is_callback(made.get(op.ins[0]))
    return callback or _is_maximum(op, made)


def _factors(body: Body) -> set[int]:
    """Values that serve the solver of a `custom_linear_solve` alone, or of its like.

    Its derivative is that of the product it solves for, and takes the matrix itself.
    """
    others = set(body.outs)  # what serves anything else
    for op in reversed(body.ops):
        serves = [True] * len(op.ins)
        if not others.isdisjoint(op.outs):
            serves = _stand_ins(op)
        others |= {v for v, only in zip(op.ins, serves, strict=True) if not only}
    return {v for op in body.ops for v in op.outs} - others


def _stand_ins(op: Op) -> list[bool]:
    """Which operands an operation computes with in the place of what its rule is about.

    Its value reads them, and its rule has no derivative for them but for an operand that
    the value does not read.
    """
    if op.name == "custom_linear_solve":
        return tags.solver_operands(op.eqn.params, len(op.ins))
    read = [True] * len(op.ins)
    if op.has_own_rule and op.bodies and len(op.bodies[0].ins) == len(op.ins):
        read = flat.reads(op.bodies[0])
    if all(read):
        return [False] * len(op.ins)
    return [r and not foreign.has_derivative(op.eqn, i) for i, r in enumerate(read)]


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
