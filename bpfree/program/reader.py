"""One reading of a program for `find`: who is a node, and where its examples stand."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from bpfree.program import axes, tags, weights
from bpfree.program.axes import LOST, Place
from bpfree.program.flat import Body, Live, Op, Path
from bpfree.program.seen_through import is_callback, passes_noise
from bpfree.program.values import Value, bits_of, join, known, small, typed
from bpfree.program.weights import LOOKUPS, PRODUCTS, STEPS


class Mark(NamedTuple):
    """A tag to put in: on an output of an operation, or on a parameter.

    The place of a statistic is that of the examples in the operand that is summed.
    """

    kind: str
    leaves: tuple[int, ...]
    place: Place | None = None


class Found(NamedTuple):
    """The tags to put in.

    Attributes:
      outputs: {path of an operation: mark of its output}.
      inputs: {path: (operand, mark)}, of the values that kernels multiply.
      params: {leaf: mark}: weight noise.
      idle: paths of tags of the user that cannot move the losses.
    """

    outputs: dict[Path, Mark]
    inputs: dict[Path, tuple[int, Mark]]
    params: dict[int, Mark]
    idle: set[Path]


class Source(NamedTuple):
    """What is read: a flat program, with the arguments of `find`.

    Attributes:
      live: what the losses depend on (`flat.live`).
      marked: the user has chosen the nodes, so that none is added.
      assumed: length of the axis by which a constant, or what a key draws, is taken for a
        value of the batch (coordinates, latents, time steps). Nothing rests on it: noise
        that does not stay with its example is seen on the way to the losses.
      ends, sums: of `weights`.
    """

    body: Body
    shapes: tuple[tuple[int, ...], ...]
    roles: tuple[str, ...]
    live: Live
    marked: bool
    batch: int | None
    credited: bool
    rows: frozenset[int]
    hold_stops: bool
    everywhere: bool
    assumed: int | None = None
    ends: dict[Path, Path] = {}
    sums: dict[Path, tuple[int, int]] = {}

    def placing(self, assumed: int | None) -> "Source":
        """With the places of nodes."""
        if self.marked:
            return self
        made_of = weights.structure(self.body, self.roles, assumed)
        sums = weights.summed_products(self.body, made_of, self.live)
        ends = weights.ends(self.body, made_of, sums, self.live)
        return self._replace(assumed=assumed, ends=ends, sums=sums)


class Reader:
    """One reading of a program, repeated until no further node has to be shared.

    `outputs`, `inputs` and `idle` are as in `Found`; `pending` are the leaves of products
    whose node stands after the operation at a path, `bits` the numbers of the nodes.

    Attributes that grow:
      forced: bits of the parameters that get weight noise.
      coupled: bits of the nodes that are shared by the batch.
      leaves: of the kernel of each node.
      auto: bits of the parameters tagged "auto": weight noise where it has fewer entries.
      constants: whether a weight meets a constant, or what a key draws, in a product.
    """

    outputs: dict[Path, Mark]
    inputs: dict[Path, tuple[int, Mark]]
    pending: dict[Path, tuple[int, ...]]
    idle: set[Path]

    def __init__(self, source: Source):
        self.source, self.constants = source, False
        self.bits: dict[Path, int] = {}
        self.leaves: dict[Path, tuple[int, ...]] = {}
        self.forced = (1 << source.roles.count("param")) - 1 if source.everywhere else 0
        self.coupled = self.auto = 0

    def read(self, losses: int, guess: int) -> "Reader":
        """Takes the guess-th axis of size B of each leaf of the batch for the batch's."""
        while True:
            before = self.forced, self.coupled
            self.outputs, self.inputs, self.pending, self.idle = {}, {}, {}, set()
            end = self._walk(self.source.body, self._start(guess), True, 1)[losses]
            self._force(end.decides)
            if end.place != Place(0):
                end = end.mixing()
            if not self.source.credited:  # noise of these nodes is shared by the batch
                self.coupled |= end.mixed
            if not (self.forced or any(m.kind == "node" for m in self.outputs.values())):
                self._force(end.trains)
            if before == (self.forced, self.coupled):
                return self

    def _start(self, guess: int) -> list[Value]:
        def one(i, shape, role):
            if 0 in shape:
                return Value()
            if role == "param":
                forced = self.forced >> i & 1
                noise = self._bit((-1, i), (i,)) if forced else 0
                return Value(noise=noise) if forced else Value(own=1 << i)
            if role == "key":
                return Value()
            fits = [a for a, size in enumerate(shape) if size == self.source.batch]
            if self.source.rows:  # rows and losses are told apart by the first axis
                fits = [a for a in fits if a == 0 and shape[0] not in self.source.rows]
            place = Place(fits[min(guess, len(fits) - 1)]) if fits else None
            return Value(data=True, place=place)

        inputs = zip(self.source.shapes, self.source.roles, strict=True)
        return [one(i, shape, role) for i, (shape, role) in enumerate(inputs)]

    def _bit(self, path, leaves: tuple[int, ...] = ()) -> int:
        self.leaves[path] = leaves
        return 1 << self.bits.setdefault(path, len(self.bits))

    def _force(self, leaves: int) -> None:
        if not self.source.marked:
            self.forced |= leaves

    # -------------------------------------------------------------------------- programs

    def _walk(
        self, body: Body, ins, place: bool, steps: int, holds: bool = False
    ) -> list[Value]:
        env: dict[int, Value] = dict(zip(body.ins, ins, strict=True))
        for v, c in body.consts.items():
            env[v] = self._drawn(Value(const=small(c)), jnp.shape(c))
        made: dict[int, Op] = {}
        asked = {v for op in body.ops if is_callback(op) for v in op.ins}
        for op in body.ops:
            ins = [env[v] for v in op.ins]
            if op.path not in self.source.live.paths:
                outs = [Value()] * len(op.outs)
                if op.eqn.primitive is tags.tag_p:
                    self.idle.add(op.path)
            elif op.name == "scan":
                outs = self._scan(op, ins, place, steps)
            elif op.name in tags.REMAT:
                outs = self._walk(op.bodies[0], ins, place, steps)
            elif op.bodies:
                outs = self._inside(op, ins, place)
            elif op.eqn.primitive is tags.tag_p:
                outs = [self._tag(op, ins[0])]
            elif op.name == "stop_gradient":
                hold = (place or holds) and self.source.hold_stops
                hold = hold and not passes_noise(op, made, asked)
                outs = [self._stopped(op, ins[0], hold)]
            elif place and op.name == "reduce_sum" and self._meet(op, ins[0]):
                outs = [self._statistic(op, ins[0])]
            else:
                outs = self._plain(op, ins, place, steps)
            if place and op.path in self.source.sums:
                weight, x = (env[v] for v in self.source.sums[op.path])
                if weight.trains:
                    self._candidate(op, weight, [x])
            if op.path in self.pending:
                outs = [self._node(op, self.pending[op.path], outs[0], steps)]
            env.update(zip(op.outs, outs, strict=True))
            made.update(dict.fromkeys(op.outs, op))
        return [env[v] for v in body.outs]

    def _scan(self, op: Op, ins, place: bool, steps: int) -> list[Value]:
        """Inside, places on the axis of the steps become negative."""
        length = op.eqn.params["length"]
        consts, carry, xs = tags.split_scan(op.eqn.params, ins)

        def into(value: Value, sliced: bool) -> Value:
            at = value.place
            if at is not None and (sliced or at.axis < 0):
                whole = at.axis > 0 or (at.outer, at.inner) == (1, 1)
                at = at._replace(axis=at.axis - 1) if whole else LOST
            if at is LOST and value.place is not None:
                value = value.mixing()
            return value._replace(place=at, const=None, columns=())

        def out_of(value: Value, stacked: bool) -> Value:
            at = value.place
            if at is not None and (stacked or at.axis < 0):
                at = at._replace(axis=at.axis + 1)
            return value._replace(place=at, const=None, columns=())

        consts = [into(v, False) for v in consts]
        xs = [into(v, True) for v in xs]
        carry = [into(v, False) for v in carry]

        def settled(carry, walk):
            while True:
                outs = walk([*consts, *carry, *xs])
                new = [self._carried(a, b) for a, b in zip(carry, outs, strict=False)]
                if new == carry:
                    return carry, outs
                carry = new

        # The batch first: a state that starts as zeros belongs to no example yet.
        known, _ = settled(carry, lambda ins: self._quiet(op.bodies[0], ins))
        pairs = zip(carry, known, strict=True)
        carry = [v._replace(data=k.data, place=k.place) for v, k in pairs]
        carry, outs = settled(
            carry, lambda ins: self._walk(op.bodies[0], ins, place, steps * length)
        )
        ends = [out_of(v, False) for v in outs[: len(carry)]]
        return ends + [out_of(v, True) for v in outs[len(carry) :]]

    def _carried(self, start: Value, end: Value) -> Value:
        joined = join([start, end])._replace(const=None, columns=())
        place = start.place if end.place is None else end.place
        if start.place is not None and end.place not in (None, start.place):
            joined = joined.mixing()
            place = start.place if start.noise else end.place
        if end.place is None and end.noise and start.place is not None:
            place = LOST
        if place is not None and place.axis == -1:  # the steps would meet in the carry
            return joined.mixing()
        return joined._replace(place=place)

    def _inside(self, op: Op, ins, place: bool) -> list[Value]:
        """Branches, loops without a length, functions with a derivative of their own."""
        joined = join(ins)
        has_product = tags.count_products(op.eqn, PRODUCTS)
        own_rule = op.name.startswith("custom_")
        if not own_rule:  # no node can stand inside
            if op.name == "while" or has_product:
                joined = joined._replace(
                    own=0, past=0, decides=joined.decides | joined.trains
                )
            elif op.name == "cond":
                joined = joined._replace(decides=joined.decides | ins[0].trains)
        elif has_product and joined.trains:
            weights = [v for v in ins if v.trains and not v.data]
            data = [v for v in ins if v.data]
            alone = has_product == 1 and len(op.outs) == 1
            if alone and weights and data and op.path in self.source.ends:
                self._candidate(op, join(weights), data)
            else:
                self._force(joined.trains)
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
            while True:
                outs = self._quiet(op.bodies[-1], [*consts, *carry])
                new = [self._carried(a, b) for a, b in zip(carry, outs, strict=True)]
                if new == carry:
                    return carry
                carry = new
        operands = ins[1:] if op.name == "cond" else ins
        found = [Value()] * len(op.outs)
        bodies = op.bodies if op.name == "cond" else op.bodies[:1]
        for body in bodies:
            if len(body.ins) != len(operands) or len(body.outs) != len(op.outs):
                return [Value()] * len(op.outs)
            outs = self._quiet(body, operands, holds=place and op.name == "cond")
            found = [self._carried(a, b) for a, b in zip(found, outs, strict=True)]
        return found

    def _quiet(self, body: Body, ins, holds: bool = False) -> list[Value]:
        """A walk of a body in which no node is placed."""
        bare = [v._replace(own=0, past=0) for v in ins]
        return self._walk(body, bare, False, 1, holds)

    # ------------------------------------------------------------------------ operations

    def _tag(self, op: Op, value: Value) -> Value:
        """A tag of the user."""
        kind, axis = (op.eqn.params[k] for k in ("kind", "batch_axis"))
        if kind == "weight":
            self._force(value.own)
        elif kind == "auto":
            self.auto |= value.own
        elif kind == "hold":
            return value._replace(own=0, past=0, decides=0, noise=0, mixed=0)
        elif kind == "node":
            bit = self._bit(op.path)
            place = Place(axis) if isinstance(axis, int) else value.place
            shared = axis is None or bit & self.coupled or not self.source.batch
            self.outputs[op.path] = Mark("node", (), None if shared else place)
            noise = value.noise | bit
            return value._replace(own=0, past=0, noise=noise, place=place)
        return value

    def _stopped(self, op: Op, value: Value, hold: bool) -> Value:
        """`stop_gradient` of what noise reaches keeps its clean value in noisy passes."""
        rest = value._replace(own=0, past=0, decides=0)
        inexact = jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.inexact)
        if not (hold and value.noise and inexact):
            return rest
        self.outputs[op.path] = Mark("hold", ())
        return rest._replace(noise=0, mixed=0)

    def _meet(self, op: Op, value: Value) -> bool:
        """Whether noise of several examples meets in this sum."""
        if value.place is None or self.source.credited:
            return False
        at, shape = value.place, op.eqn.invars[0].aval.shape
        whole = shape[at.axis] == at.outer * (self.source.batch or 0) * at.inner
        alone = value.noise & ~value.mixed
        real = not jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.complexfloating)
        return real and whole and alone != 0 and at.axis in op.eqn.params["axes"]

    def _statistic(self, op: Op, value: Value) -> Value:
        """A sum over the batch: held in noisy passes, and a node shared by the batch."""
        reaching = (p for p, i in self.bits.items() if value.noise >> i & 1)
        leaves = self.leaves[max(reaching)]  # of the last one
        self.outputs[op.path] = Mark("statistic", leaves, value.place)
        noise = self._bit(op.path, leaves)
        return value._replace(noise=noise, place=LOST)

    def _plain(self, op: Op, ins: list[Value], place: bool, steps: int) -> list[Value]:
        joined = self._placed(op, ins)
        if op.name in PRODUCTS or op.name in LOOKUPS:
            joined = self._product(op, ins, joined, place)
        elif op.name in STEPS or is_callback(op):
            joined = joined._replace(
                own=0, past=0, decides=joined.decides | joined.trains
            )
        if op.name == "random_bits":
            joined = self._drawn(joined, op.eqn.outvars[0].aval.shape)
        const, columns = known(op, ins)
        made = joined._replace(const=const, columns=columns)
        return [typed(made, v.aval) for v in op.eqn.outvars]

    def _drawn(self, value: Value, shape) -> Value:
        """A constant, or what a key draws, which may count examples."""
        size = self.source.assumed
        if value.place or size not in shape:
            return value
        return value._replace(data=True, place=Place(shape.index(size)))

    def _placed(self, op: Op, ins: list[Value]) -> Value:
        """The operands joined, with the place of the examples in the result."""
        joined, batch = join(ins), self.source.batch
        columns = ins[1].columns if len(ins) > 1 else ()
        moved = []
        for i, value in enumerate(ins):
            if batch is None or value.place is None:
                continue
            at = axes.moved(op.eqn, i, value.place, batch, columns)
            if at is LOST and self.source.credited:
                at = axes.exchanged(op.eqn, i, value.place, batch)
            moved.append((value, at))
        found = [at for _, at in moved if at is not LOST]
        noisy = [at for value, at in moved if value.noise and at is not LOST]
        place = noisy[0] if noisy else min(found, default=None)
        mixed = joined.mixed
        for value, at in moved:
            if at != place or at is LOST:
                mixed |= value.noise
        return joined._replace(place=place, mixed=mixed)

    def _product(self, op: Op, ins, joined: Value, place: bool) -> Value:
        """A product or lookup: a weight's gets a node, others carry derivatives on."""
        left, right = ins[0], join(ins[1:]) if op.name in LOOKUPS else ins[1]
        if 0 in op.eqn.outvars[0].aval.shape:
            return joined
        if not (left.data or right.data):
            return joined if op.name in LOOKUPS else self._constant(left, right, joined)
        for weight, x, operand in ((left, right, 1), (right, left, 0)):
            if weight.trains and not weight.data and x.data:
                if op.name in LOOKUPS and operand == 0:
                    continue
                kind = op.eqn.invars[operand].aval.dtype
                if place and jnp.issubdtype(kind, jnp.inexact):  # no index of a lookup
                    mark = Mark("input", bits_of(weight.trains))
                    self.inputs[op.path] = (operand, mark)
                if place and op.path in self.source.ends:
                    self._candidate(op, weight, [x])
                else:
                    self._force(weight.trains)
                return joined
        if op.name in LOOKUPS:
            return joined
        if left.data and right.data:
            self._force(joined.past)
            return joined._replace(own=0, past=joined.trains)
        self._force(joined.trains)
        return joined

    def _constant(self, left: Value, right: Value, joined: Value) -> Value:
        """A product without the batch: of parameters alone, or of one with a constant.

        A net of constants (coordinates, or what a key draws) has no nodes. Its last
        parameters belong to the next block, those before them get weight noise.
        """
        for value, other in ((left, right), (right, left)):
            if value.past and other.trains:
                self._force(value.trains)
        if left.trains and right.trains:
            return joined
        self.constants |= joined.trains != 0
        return joined._replace(own=0, past=joined.trains)

    def _candidate(self, op: Op, weight: Value, xs) -> None:
        """A node after the bias of this product, for the leaves of the weight."""
        leaves = bits_of(weight.trains)
        self._force(join(xs).trains)
        end = self.source.ends[op.path]
        self.pending[end] = tuple(dict.fromkeys(self.pending.get(end, ()) + leaves))

    def _node(self, op: Op, leaves: tuple[int, ...], value: Value, steps: int) -> Value:
        bit = self._bit(op.path, leaves)
        aval = op.eqn.outvars[0].aval
        if not jnp.issubdtype(aval.dtype, jnp.floating):  # complex, say
            self._force(sum(1 << i for i in leaves))
            return value
        batch = self.source.batch
        by_rows = value.place is None and bool(aval.shape[:1])
        by_rows = by_rows and aval.shape[0] in self.source.rows
        at = Place(0) if by_rows else value.place
        alone = at is not None and not bit & self.coupled
        mine = sum(1 << i for i in leaves)
        entries = sum(math.prod(self.source.shapes[i]) for i in leaves)
        size = steps * math.prod(aval.shape)  # of the noise, as long as it is shared
        if batch and not alone:
            self.coupled |= bit
            if entries <= size:
                self._force(mine)
        elif mine & self.auto == mine and entries < size // (batch or 1):
            self._force(mine)
        place = at if alone and batch else None
        self.outputs[op.path] = Mark("node", leaves, place)
        return value._replace(own=0, past=0, noise=value.noise | bit)

    def found(self) -> Found:
        forced = {i: Mark("node", (i,)) for i in bits_of(self.forced)}
        return Found(self.outputs, self.inputs, forced, self.idle)
