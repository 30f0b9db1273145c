"""Where the node of a weight product stands: after what is computed of it alone.

From the product on, the program is followed through sums, scales and norms, as long as
they read nothing else than parameters, constants, and products that are followed too. The
node stands at the last value that is made with a parameter, or as the sum of products,
on which all that was followed flows together, and which is linear in the product but for
its moments: after a bias, after the scale and bias of a norm, after the sum of an input's
and a state's product. What stands between belongs to its block: no weight product is
crossed on the way.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bpfree.program import tags
from bpfree.program.flat import Body, Live, Op, Path

PRODUCTS = frozenset(
    """dot_general conv_general_dilated ragged_dot ragged_dot_general
    triangular_solve""".split()
)
LOOKUPS = ("gather", "dynamic_slice")
STEPS = frozenset("floor ceil round sign".split())  # their derivative is zero
SHAPES = frozenset(
    """reshape transpose squeeze expand_dims broadcast_in_dim tile
    convert_element_type""".split()
)
_SUMS = ("add", "sub", "add_any")
_SCALES = ("mul", "div")
_LINEAR = SHAPES.union(_SUMS, ("real", "neg"))
_FOLLOWED = _LINEAR.union(_SCALES, "square integer_pow sqrt rsqrt reduce_sum max".split())


def structure(
    body: Body, roles: Sequence[str], assumed: int | None = None
) -> dict[int, tuple[bool, bool]]:
    """{value: (depends on parameters, depends on the batch)}.

    Constants, and what a key draws, with an axis of length `assumed` count as data.
    """
    found: dict[int, tuple[bool, bool]] = {}

    def mark(v) -> tuple[bool, bool]:
        return found.get(v, (False, False))

    def join(values) -> tuple[bool, bool]:
        values = list(values)
        return any(p for p, _ in values), any(d for _, d in values)

    def walk(body: Body, ins):
        found.update(zip(body.ins, ins, strict=True))
        found.update({v: (False, assumed in np.shape(c)) for v, c in body.consts.items()})
        for op in body.ops:
            ins = [mark(v) for v in op.ins]
            outs = [join(ins)] * len(op.outs)
            if op.name == "random_bits" and assumed in op.eqn.outvars[0].aval.shape:
                outs = [(outs[0][0], True)]
            if op.name in tags.REMAT:
                outs = walk(op.bodies[0], ins)
            elif op.name == "scan":
                outs = scan(op, ins)
            found.update(zip(op.outs, outs, strict=True))
        return [mark(v) for v in body.outs]

    def scan(op: Op, ins):
        consts, carry, xs = tags.split_scan(op.eqn.params, ins)
        while True:
            outs = walk(op.bodies[0], [*consts, *carry, *xs])
            pairs = zip(carry, outs[: len(carry)], strict=True)
            grown = [join(pair) for pair in pairs]
            if grown == list(carry):
                return outs
            carry = grown

    walk(body, [(role == "param", role == "batch") for role in roles])
    return found


def summed_products(body: Body, made_of, live: Live) -> dict[Path, tuple[int, int]]:
    """{path of a sum: (weight, value of the batch)}: products written with `*` and `sum`.

    The sum alone reads the product, along an axis on which the weight varies.
    """
    found: dict[Path, tuple[int, int]] = {}
    uses, made = live.uses(body), {}
    for op in body.ops:
        for inner in op.bodies if op.name == "scan" or op.name in tags.REMAT else ():
            found |= summed_products(inner, made_of, live)
        made.update(dict.fromkeys(op.outs, op))
        factor = made.get(op.ins[0]) if op.name == "reduce_sum" else None
        while (
            factor and factor.name == "convert_element_type" and uses[factor.outs[0]] == 1
        ):
            factor = made.get(factor.ins[0])
        if not (factor and factor.name == "mul" and uses[factor.outs[0]] == 1):
            continue
        for weight, x in (factor.ins, factor.ins[::-1]):
            roles = made_of.get(weight), made_of.get(x, (False, False))[1]
            if roles == ((True, False), True):
                shape = factor.eqn.outvars[0].aval.shape
                if set(op.eqn.params["axes"]) & _varies(made.get(weight), shape):
                    found[op.path] = weight, x
    return found


def _varies(op: Op | None, shape) -> set[int]:
    """Axes on which the result of an operation, of this shape, is no repetition."""
    axes = {a for a, size in enumerate(shape) if size > 1}
    if op is None or op.name != "broadcast_in_dim":
        return axes
    source = op.eqn.invars[0].aval.shape
    pairs = zip(op.eqn.params["broadcast_dimensions"], source, strict=True)
    return axes & {axis for axis, size in pairs if size > 1}


class _Region:
    """What is followed from some products on, in the order of the program.

    Attributes:
      values: with what is left of their uses.
      linear: those of them that are linear in a product, moments taken as constants.
      end: path of the operation at which the node stands, as far as is known.
      products: paths of the products.
    """

    def __init__(self, op: Op, uses: Counter):
        self.values = {op.outs[0]: uses[op.outs[0]]}
        self.linear = {op.outs[0]}
        self.products, self.end = [op.path], op.path

    def takes(self, op: Op, others: list["_Region"], uses: Counter) -> None:
        """Another operation, and other regions that end in it."""
        for other in others:
            self.values |= other.values
            self.linear |= other.linear
            self.products += other.products
        for v in op.ins:
            if v in self.values:
                self.values[v] -= 1
        self.values[op.outs[0]] = uses[op.outs[0]]
        linear = [v in self.linear for v in op.ins]
        scaled = (
            op.name in _SCALES and sum(linear) == 1 and linear[0] >= (op.name == "div")
        )
        if scaled or (any(linear) and op.name in _LINEAR):
            self.linear.add(op.outs[0])

    def ends_in(self, value: int) -> bool:
        """Whether the one operation that is left reads this value."""
        read_once = self.values[value] == 1 and value in self.linear
        return read_once and self.flows_together_at(value)

    def flows_together_at(self, value: int) -> bool:
        return all(left == 0 for v, left in self.values.items() if v != value)


def ends(body: Body, made_of, sums, live: Live) -> dict[Path, Path]:
    """{path of an operation: path of the operation after which its node stands}.

    Args:
      made_of: `structure` of the program.
      sums: `summed_products` of it.
      live: what the losses depend on; nothing else counts as a use.
    """
    found: dict[Path, Path] = {}
    uses = live.uses(body)
    of_value: dict[int, _Region] = {}
    regions: list[_Region] = []

    def is_data(v) -> bool:
        return made_of.get(v, (False, False))[1]

    def is_weight(v) -> bool:
        return made_of.get(v) == (True, False)

    for op in body.ops:
        if op.name == "scan" or op.name in tags.REMAT:
            found |= ends(op.bodies[0], made_of, sums, live)
        if op.path not in live.paths or not (op.outs and is_data(op.outs[0])):
            continue
        weighted = any(map(is_weight, op.ins))
        if op.name == "triangular_solve" and is_weight(op.ins[0]):
            continue  # its derivative passes through the solve: no node ends that
        product = op.name in PRODUCTS or op.name in LOOKUPS or bool(op.bodies)
        if (weighted and product) or op.path in sums:
            regions.append(_Region(op, uses))
            of_value[op.outs[0]] = regions[-1]
            continue
        read = {id(of_value[v]): of_value[v] for v in op.ins if v in of_value}
        alone = all(v in of_value for v in op.ins if is_data(v))
        if not (read and alone and op.name in _FOLLOWED):
            continue
        first, *others = read.values()
        if others and not (
            op.name in _SUMS and all(of_value[v].ends_in(v) for v in op.ins)
        ):
            continue
        first.takes(op, others, uses)
        of_value.update(dict.fromkeys(first.values, first))
        regions = [r for r in regions if all(r is not other for other in others)]
        made = op.name in _SUMS + _SCALES and (weighted or others)
        value = op.outs[0]
        standing = value in first.linear and first.flows_together_at(value)
        if (made or op.name == "real") and standing:
            first.end = op.path
    for region in regions:
        found |= dict.fromkeys(region.products, region.end)
    return found
