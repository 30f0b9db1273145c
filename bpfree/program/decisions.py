"""Where tags go: decided on the way through a program, by the values that are met.

A node stands after each weight product, a hold at a `stop_gradient`, a statistic at a sum
over the batch; a parameter gets weight noise where no node serves it.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from bpfree.program.flat import Op, Path
from bpfree.program.place import LOST, Parts, Place, Somewhere, axes_of
from bpfree.program.source import Source
from bpfree.program.values import Value, bits_of, join
from bpfree.program.weights import LOOKUPS


class Mark(NamedTuple):
    """A tag to put in: on an output of an operation, or on a parameter.

    The place of a statistic is that of the examples in the operand that is summed.
    """

    kind: str
    leaves: tuple[int, ...]
    place: Somewhere = None


class Found(NamedTuple):
    """The tags to put in.

    Attributes:
      outputs: {path of an operation: mark of its output}.
      inputs: {path: (operand, mark)}, of the values that kernels multiply.
      params: {leaf: mark}: weight noise.
      idle: paths of tags of the user that cannot move the losses.
      maps: paths of loops without a carry whose steps are parts of the batch.
    """

    outputs: dict[Path, Mark]
    inputs: dict[Path, tuple[int, Mark]]
    params: dict[int, Mark]
    idle: set[Path]
    maps: set[Path]


class Decisions:
    """The tags of one reading of a program.

    `outputs`, `inputs`, `idle` and `maps` are as in `Found`; `pending` are the leaves of
    products whose node stands after the operation at a path, `bits` the numbers of nodes.

    Attributes that grow from walk to walk:
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
    maps: set[Path]
    guess: int

    def __init__(self, source: Source):
        self.source, self.constants = source, False
        self.bits: dict[Path, int] = {}
        self.leaves: dict[Path, tuple[int, ...]] = {}
        self.forced = (1 << source.roles.count("param")) - 1 if source.everywhere else 0
        self.coupled = self.auto = 0

    def begin(self, guess: int) -> None:
        """Forget the tags of the walk before; `guess` as in `Reader.read`."""
        self.guess = guess
        self.outputs, self.inputs, self.pending = {}, {}, {}
        self.idle, self.maps = set(), set()

    def found(self) -> Found:
        forced = {i: Mark("node", (i,)) for i in bits_of(self.forced)}
        return Found(self.outputs, self.inputs, forced, self.idle, self.maps)

    @property
    def shared(self) -> tuple[int, int]:
        """How many nodes are shared by the batch, and how many parameters get noise."""
        nodes = (i for path, i in self.bits.items() if path[0] >= 0)
        return sum(self.coupled >> i & 1 for i in nodes), self.forced.bit_count()

    def bit(self, path: Path, leaves: tuple[int, ...] = ()) -> int:
        """The bit of the node at a path."""
        self.leaves[path] = leaves
        return 1 << self.bits.setdefault(path, len(self.bits))

    def force(self, leaves: int) -> None:
        """Weight noise for these parameters, unless the user has chosen the nodes."""
        if not self.source.marked:
            self.forced |= leaves

    def end(self, losses: Value) -> None:
        """What follows from what is known of the losses."""
        self.force(losses.decides)
        if losses.place != Place(0):
            losses = losses.mixing()
        if not self.source.credited:  # noise of these nodes is shared by the batch
            self.coupled |= losses.mixed
        if not (self.forced or any(m.kind == "node" for m in self.outputs.values())):
            self.force(losses.trains)

    def tag(self, op: Op, value: Value) -> Value:
        """A tag of the user."""
        kind, axis = (op.eqn.params[k] for k in ("kind", "batch_axis"))
        if kind == "weight":
            self.force(value.own)
        elif kind == "auto":
            self.auto |= value.own
        elif kind == "hold":
            return value.at_node()._replace(decides=0, noise=0, mixed=0)
        elif kind == "node":
            bit = self.bit(op.path)
            value = self.placed_anew(op, bit, value) if axis is not None else value
            place = Place(axis) if isinstance(axis, int) else value.place
            shared = axis is None or bit & self.coupled or not self.source.batch
            self.outputs[op.path] = Mark("node", (), None if shared else _standing(place))
            return value.at_node(bit)._replace(place=place)
        return value

    def stopped(self, op: Op, value: Value, hold: bool) -> Value:
        """`stop_gradient` of what noise reaches keeps its clean value in noisy passes."""
        rest = value.frozen()
        inexact = jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.inexact)
        if not (hold and value.noise and inexact):
            return rest
        self.outputs[op.path] = Mark("hold", ())
        return rest._replace(noise=0, mixed=0)

    def meets(self, op: Op, value: Value) -> bool:
        """Whether noise of several examples meets in this sum."""
        if not isinstance(value.place, Place) or self.source.credited:
            return False
        at, shape = value.place, op.eqn.invars[0].aval.shape
        whole = shape[at.axis] == at.outer * (self.source.batch or 0) * at.inner
        alone = value.noise & ~value.mixed
        real = not jnp.issubdtype(op.eqn.outvars[0].aval.dtype, jnp.complexfloating)
        return real and whole and alone != 0 and at.axis in op.eqn.params["axes"]

    def statistic(self, op: Op, value: Value) -> Value:
        """A sum over the batch: held in noisy passes, and a node shared by the batch."""
        reaching = (p for p, i in self.bits.items() if value.noise >> i & 1)
        leaves = self.leaves[max(reaching)]  # of the last one
        self.outputs[op.path] = Mark("statistic", leaves, value.place)
        noise = self.bit(op.path, leaves)
        return value._replace(noise=noise, place=LOST)

    def product(self, op: Op, ins, joined: Value, place: bool) -> Value:
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
                    self.candidate(op, weight, [x])
                else:
                    self.force(weight.trains)
                return joined
        if op.name in LOOKUPS:
            return joined
        if left.data and right.data:
            self.force(joined.past)
            return joined._replace(own=0, past=joined.trains)
        self.force(joined.trains)
        return joined

    def _constant(self, left: Value, right: Value, joined: Value) -> Value:
        """A product without the batch: of parameters alone, or of one with a constant.

        A net of constants (coordinates, or what a key draws) has no nodes. Its last
        parameters belong to the next block, those before them get weight noise.
        """
        for value, other in ((left, right), (right, left)):
            if value.past and other.trains:
                self.force(value.trains)
        if left.trains and right.trains:
            return joined
        self.constants |= joined.trains != 0
        return joined._replace(own=0, past=joined.trains)

    def candidate(self, op: Op, weight: Value, xs) -> None:
        """A node after the bias of this product, for the leaves of the weight."""
        leaves = bits_of(weight.trains)
        self.force(join(xs).trains)
        end = self.source.ends[op.path]
        self.pending[end] = tuple(dict.fromkeys(self.pending.get(end, ()) + leaves))

    def placed_anew(self, op: Op, bit: int, value: Value) -> Value:
        """The value of a node; where its place is lost, on an axis of the batch's size.

        What noise reaches it stays shared by the examples. A guess that leads to no
        example's own loss is not made again.
        """
        shape, source = op.eqn.outvars[0].aval.shape, self.source
        fits = [a for a, size in enumerate(shape) if size == source.batch]
        known = value.place is not LOST or bit & self.coupled
        if known or not (fits and source.anew):
            return value
        return value.mixing()._replace(place=Place(fits[min(self.guess, len(fits) - 1)]))

    def node(self, op: Op, leaves: tuple[int, ...], value: Value, steps: int) -> Value:
        bit = self.bit(op.path, leaves)
        aval = op.eqn.outvars[0].aval
        if not jnp.issubdtype(aval.dtype, jnp.floating):  # complex, say
            self.force(sum(1 << i for i in leaves))
            return value
        batch = self.source.batch
        value = self.placed_anew(op, bit, value)
        by_rows = value.place is None and bool(aval.shape[:1])
        by_rows = by_rows and aval.shape[0] in self.source.rows
        at = Place(0) if by_rows else _standing(value.place)
        alone = at is not None and not bit & self.coupled
        mine = sum(1 << i for i in leaves)
        entries = sum(math.prod(self.source.shapes[i]) for i in leaves)
        size = steps * math.prod(aval.shape)  # of the noise, as long as it is shared
        if batch and not alone:
            self.coupled |= bit
            if entries <= size:
                self.force(mine)
        elif mine & self.auto == mine and entries < size // (batch or 1):
            self.force(mine)
        place = at if alone and batch else None
        self.outputs[op.path] = Mark("node", leaves, place)
        return value.at_node(bit)


def _standing(place: Somewhere) -> Somewhere:
    """Where a node has its examples: not on the steps of a loop and an axis as well."""
    inside = isinstance(place, Parts) and min(axes_of(place)) < 0
    return LOST if inside else place
