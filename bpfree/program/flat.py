"""A jaxpr as a flat list of operations, jit inlined, with what moves the losses.

Values have numbers, so that a use is found across the borders of jitted functions; the
path of an operation is its place in the nested jaxpr, as in `interpreter`.
"""

from collections import Counter
from collections.abc import Callable, Set
from itertools import count
from typing import Any, NamedTuple

from jax.extend import core as jcore

from bpfree.program import foreign, tags

Path = tuple[int, ...]


class Op(NamedTuple):
    """An equation; inputs and outputs are numbers of values."""

    eqn: Any
    path: Path
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    bodies: tuple["Body", ...] = ()

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def has_own_rule(self) -> bool:
        return foreign.has_own_rule(self.eqn.primitive)

    @property
    def reads(self) -> list[bool]:
        """Which operands it depends on: of a `cond` those that a branch reads."""
        if self.name != "cond":
            return [True] * len(self.ins)
        return [True, *map(any, zip(*map(reads, self.bodies), strict=True))]

    def count(self, names: Set[str]) -> int:
        """How many operations of these names stand in its bodies, at any depth.

        Those of a loop count twice, for one turn comes after another.
        """
        turns = 2 if self.name in ("scan", "while") else 1
        inner = [op for body in self.bodies for op in body.ops]
        return turns * sum((op.name in names) + op.count(names) for op in inner)


class Body(NamedTuple):
    """A program: numbers of its inputs and outputs, and its constants, literals too."""

    ops: tuple[Op, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    consts: dict[int, Any]


class Live(NamedTuple):
    """What some outputs of a program depend on.

    Attributes:
      paths: of the operations.
      outs: {outputs of a body: which of them are needed}.
    """

    paths: set[Path]
    outs: dict[tuple[int, ...], list[bool]]

    def uses(self, body: Body) -> Counter:
        """How often each value is read here, by operations that the outputs depend on."""
        read = Counter(v for op in body.ops if op.path in self.paths for v in op.ins)
        needed = zip(body.outs, self.outs.get(body.outs, ()), strict=False)
        return read + Counter(v for v, mine in needed if mine)


def flatten(jaxpr, consts) -> Body:
    """The flat form of a jaxpr and its constants."""
    return _body(jaxpr, consts, (), count())


def _body(jaxpr, consts, path: Path, numbers) -> Body:
    ops: list[Op] = []
    known: dict[int, Any] = {}
    ins = tuple(next(numbers) for _ in jaxpr.invars)
    outs = _inline(jaxpr, consts, ins, path, numbers, ops, known)
    return Body(tuple(ops), ins, outs, known)


def _inline(jaxpr, consts, ins, path: Path, numbers, ops, known) -> tuple[Any, ...]:
    env: dict[Any, Any] = dict(zip(jaxpr.invars, ins, strict=True))
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        env[var] = next(numbers)
        known[env[var]] = value

    def read(v):
        if isinstance(v, jcore.Literal):
            number = next(numbers)
            known[number] = v.val
            return number
        return env[v]

    for i, eqn in enumerate(jaxpr.eqns):
        here = (*path, i)
        values = tuple(map(read, eqn.invars))
        if eqn.primitive.name in tags.INLINED:
            inner, closed = tags.body_of(eqn)
            outs = _inline(inner, closed, values, here, numbers, ops, known)
        else:
            outs = tuple(next(numbers) for _ in eqn.outvars)
            bodies = tuple(
                _body(*tags.open_jaxpr(j), (*here, k), numbers)
                for k, j in enumerate(_inner_jaxprs(eqn))
            )
            ops.append(Op(eqn, here, values, outs, bodies))
        env.update(zip(eqn.outvars, outs, strict=True))
    return tuple(map(read, jaxpr.outvars))


def _inner_jaxprs(eqn) -> list[Any]:
    if eqn.primitive.name == "scan" or eqn.primitive.name in tags.REMAT:
        return [eqn.params["jaxpr"]]
    if body := foreign.body_of(eqn):
        return [body]
    return list(jcore.jaxprs_in_params(eqn.params))


Ends = Callable[[Body], Set[Path]]
"""Paths of operations whose operands do not count as needed."""


def nothing(body: Body) -> Set[Path]:
    return frozenset()


def live(body: Body, used: list[bool], ends: Ends = nothing) -> Live:
    """What the used outputs depend on, not through the operations `ends`."""
    found = Live(set(), {})
    _live(body, used, ends, found)
    return found


def reads(body: Body) -> list[bool]:
    """Which inputs the outputs of a body depend on."""
    return _live(body, [True] * len(body.outs), nothing, Live(set(), {}))


def _live(body: Body, used, ends: Ends, found: Live) -> list[bool]:
    """Which inputs are needed; adds to `found`."""
    found.outs[body.outs] = list(used)
    ended = ends(body)
    needed = {v for v, mine in zip(body.outs, used, strict=True) if mine}
    for op in reversed(body.ops):
        wanted = [v in needed for v in op.outs]
        if not any(wanted):
            continue
        found.paths.add(op.path)
        reads = [True] * len(op.ins)
        if op.path in ended:
            reads = [False] * len(op.ins)
        elif op.name == "scan":
            reads = _live_scan(op, wanted, ends, found)
        elif op.name in tags.REMAT:
            reads = _live(op.bodies[0], wanted, ends, found)
        elif op.name == "cond":
            branches = [_live(inner, wanted, ends, found) for inner in op.bodies]
            reads = [True, *map(any, zip(*branches, strict=True))]
        else:
            for inner in op.bodies:
                _live(inner, [True] * len(inner.outs), ends, found)
        needed.update(v for v, r in zip(op.ins, reads, strict=True) if r)
    return [v in needed for v in body.ins]


def _live_scan(op: Op, wanted, ends: Ends, found: Live) -> list[bool]:
    consts, carry, _ = tags.split_scan(op.eqn.params, list(op.ins))
    n, m = len(consts), len(carry)
    wanted = list(wanted)
    while True:
        reads = _live(op.bodies[0], wanted, ends, found)
        grown = [a or b for a, b in zip(wanted[:m], reads[n : n + m], strict=True)]
        if grown == wanted[:m]:
            return reads
        wanted[:m] = grown
