"""A walk through a program for `find`: what is known of every value, and what follows."""

import jax.numpy as jnp

from bpfree.program import identities, tags, values
from bpfree.program.decisions import Decisions
from bpfree.program.flat import Body, Op
from bpfree.program.place import LOST, Parts, Place, axes_of
from bpfree.program.seen_through import held_stops, is_callback
from bpfree.program.source import Source
from bpfree.program.values import Value, carried, join, typed
from bpfree.program.weights import LOOKUPS, PRODUCTS, STEPS


class Reader:
    """One reading of a program, repeated until no further node has to be shared."""

    def __init__(self, source: Source):
        self.source, self.decided = source, Decisions(source)

    def read(self, losses: int, guess: int) -> Decisions:
        """Takes the guess-th axis of size B of each leaf of the batch for the batch's."""
        decided = self.decided
        while True:
            before = decided.forced, decided.coupled
            decided.begin(guess)
            ends = self._walk(self.source.body, self._start(guess), True, 1)
            decided.end(ends[losses])
            if before == (decided.forced, decided.coupled):
                return decided

    def _start(self, guess: int) -> list[Value]:
        def one(i, shape, role):
            if 0 in shape:
                return Value()
            if role == "param":
                forced = self.decided.forced >> i & 1
                noise = self.decided.bit((-1, i), (i,)) if forced else 0
                return Value(noise=noise) if forced else Value(own=1 << i)
            if role == "key":
                return Value()
            fits = [a for a, size in enumerate(shape) if size == self.source.batch]
            if self.source.rows:  # rows and losses are told apart by the first axis
                fits = [a for a in fits if a == 0 and shape[0] not in self.source.rows]
            place = Place(fits[min(guess, len(fits) - 1)]) if fits else self._fold(shape)
            return Value(data=True, place=place)

        inputs = zip(self.source.shapes, self.source.roles, strict=True)
        return [one(i, shape, role) for i, (shape, role) in enumerate(inputs)]

    def _fold(self, shape) -> Place | None:
        """The place of examples that have several rows of a leaf each, on its first."""
        batch, folded = self.source.batch, self.source.folded
        if not (folded and batch and shape) or shape[0] % batch:
            return LOST
        times = shape[0] // batch
        return Place(0, times) if folded == "copies" else Place(0, 1, times)

    def _walk(
        self, body: Body, ins, place: bool, steps: int, holds: bool = False
    ) -> list[Value]:
        decided = self.decided
        env: dict[int, Value] = dict(zip(body.ins, ins, strict=True))
        for v, c in body.consts.items():
            env[v] = self._drawn(Value(const=values.small(c)), jnp.shape(c))
        held = held_stops(body) if place or holds else set()
        for op in body.ops:
            moves = op.path in self.source.moving
            ins = [env[v] if moves else env[v].frozen() for v in op.ins]
            if op.path not in self.source.live.paths:
                outs = [Value()] * len(op.outs)
                if op.eqn.primitive is tags.tag_p:
                    decided.idle.add(op.path)
            elif op.name == "scan":
                outs = self._scan(op, ins, place, steps)
            elif op.name in tags.REMAT:
                outs = self._walk(op.bodies[0], ins, place, steps)
            elif op.bodies:
                outs = self._inside(op, ins, place)
            elif op.eqn.primitive is tags.tag_p:
                outs = [decided.tag(op, ins[0])]
            elif op.name == "stop_gradient":
                hold = self.source.hold_stops and op.path in held
                outs = [decided.stopped(op, ins[0], hold)]
            elif (
                place and moves and op.name == "reduce_sum" and decided.meets(op, ins[0])
            ):
                outs = [decided.statistic(op, ins[0])]
            else:
                outs = self._plain(op, ins, place)
            if place and moves and op.path in self.source.sums:
                weight, x = (env[v] for v in self.source.sums[op.path])
                if weight.trains:
                    decided.candidate(op, weight, [x])
            if op.path in decided.pending:
                outs = [decided.node(op, decided.pending[op.path], outs[0], steps)]
            env.update(zip(op.outs, outs, strict=True))
        return [env[v] for v in body.outs]

    def _scan(self, op: Op, ins, place: bool, steps: int) -> list[Value]:
        steps *= op.eqn.params["length"]
        consts, carry, xs = tags.split_scan(op.eqn.params, ins)
        parts = any(isinstance(v.place, Parts) and 0 in axes_of(v.place) for v in xs)
        parts = parts and any(v.trains or v.noise for v in ins)
        still = [values.into_loop(v, False) for v in (*consts, *carry)]
        consts, carry = still[: len(consts)], still[len(consts) :]
        xs = [values.into_loop(v, True) for v in xs]
        (body,) = op.bodies

        # The batch first: a state that starts as zeros belongs to no example yet.
        known, _ = _settled(carry, lambda c: self._quiet(body, [*consts, *c, *xs]))
        pairs = zip(carry, known, strict=True)
        carry = [v._replace(data=k.data, place=k.place) for v, k in pairs]
        carry, outs = _settled(
            carry, lambda c: self._walk(body, [*consts, *c, *xs], place, steps)
        )
        count = len(carry)
        needed = self.source.live.outs.get(body.outs, ())
        if parts and not op.eqn.effects and not any(map(_moves, carry, needed)):
            self.decided.maps.add(op.path)
        return [values.out_of_loop(v, i >= count) for i, v in enumerate(outs)]

    def _inside(self, op: Op, ins, place: bool) -> list[Value]:
        """Branches, loops without a length, functions with a derivative of their own."""
        joined = join([v for v, read in zip(ins, op.reads, strict=True) if read])
        has_product = op.count(PRODUCTS)
        own_rule = op.has_own_rule
        if own_rule and joined.noise and self.source.hold_stops:
            identities.check(op.eqn)
        if not own_rule:  # no node can stand inside
            if op.name == "while" or has_product:
                joined = joined.deciding()
            elif op.name == "cond":
                joined = joined._replace(decides=joined.decides | ins[0].trains)
        elif has_product and joined.trains:
            weights = [v for v in ins if v.trains and not v.data]
            data = [v for v in ins if v.data]
            alone = has_product == 1 and len(op.outs) == 1
            if alone and weights and data and op.path in self.source.ends:
                self.decided.candidate(op, join(weights), data)
            else:
                self.decided.force(joined.trains)
        made = [
            joined.mixing()
            if v.place is LOST
            else joined._replace(place=v.place, mixed=joined.mixed | v.mixed)
            for v in self._results_inside(op, ins, place)
        ]
        return [
            typed(value, v.aval) for value, v in zip(made, op.eqn.outvars, strict=True)
        ]

    def _results_inside(self, op: Op, ins, place: bool) -> list[Value]:
        """Places of the results and where examples meet, walked through without nodes.

        What branches stop the gradient of is held.
        """
        if op.name == "while":
            n = op.eqn.params["cond_nconsts"]
            m = op.eqn.params["body_nconsts"]
            consts, carry = ins[n : n + m], ins[n + m :]
            body = op.bodies[-1]
            return _settled(carry, lambda c: self._quiet(body, [*consts, *c]))[0]
        branches = op.name == "cond"
        operands, bodies = ins, op.bodies[:1]
        if branches:
            operands, bodies = ins[1:], op.bodies
        elif op.name == "custom_linear_solve":
            at, operands = tags.split_linear_solve(op.eqn.params, ins)
            bodies = op.bodies[at : at + 1]
        found = [Value()] * len(op.outs)
        for body in bodies:
            if len(body.ins) != len(operands) or len(body.outs) != len(op.outs):
                return [Value()] * len(op.outs)
            outs = self._quiet(body, operands, holds=place and branches)
            found = list(map(carried, found, outs))
        return found

    def _quiet(self, body: Body, ins, holds: bool = False) -> list[Value]:
        """A walk of a body in which no node is placed."""
        return self._walk(body, [v.at_node() for v in ins], False, 1, holds)

    def _plain(self, op: Op, ins: list[Value], place: bool) -> list[Value]:
        source = self.source
        joined = values.placed(op, ins, source.batch, source.credited)
        if op.name in PRODUCTS or op.name in LOOKUPS:
            joined = self.decided.product(op, ins, joined, place)
        elif op.name in STEPS or is_callback(op):
            joined = joined.deciding()
        if op.name == "random_bits":
            joined = self._drawn(joined, op.eqn.outvars[0].aval.shape)
        const, columns = values.known(op, ins)
        made = joined._replace(const=const, columns=columns)
        return [typed(made, v.aval) for v in op.eqn.outvars]

    def _drawn(self, value: Value, shape) -> Value:
        """A constant, or what a key draws, which may count examples."""
        size = self.source.assumed
        if value.place or size not in shape:
            return value
        return value._replace(data=True, place=Place(shape.index(size)))


def _moves(carry: Value, needed: bool) -> bool:
    """Whether the losses can change through what a loop carries."""
    return needed and bool(carry.trains or carry.decides or carry.noise)


def _settled(carry, body) -> tuple[list[Value], list[Value]]:
    """The carry of a loop when it no longer changes, and what the body gives then."""
    while True:
        outs = body(carry)
        new = [carried(a, b) for a, b in zip(carry, outs, strict=False)]
        if new == carry:
            return carry, outs
        carry = new
