"""What the kernels of a compiled program cost: product FLOPs, bytes, collectives.

A kernel is what a device starts at once: a fusion, a product, a copy, a library's call.

    FLOPs    2 x multiplications of its matrix products and convolutions
    bytes    read and written in the device's memory, once each; of a slice its part only
    times    iterations of the loops around it

XLA's own `cost_analysis` counts the body of a loop once, and nothing in a library's call.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from bpfree.hardware.hlo import Array, Computation, Instruction, Module, parse
from bpfree.hardware.products import Product, product_of

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "iota", "domain", "add-dependency"),
)
_SLICES = ("slice", "dynamic-slice", "gather")
_BY_ENTRY = (
    *("bitcast", "convert", "bitcast-convert", "copy", "select", "add", "subtract"),
    *("multiply", "divide", "maximum", "minimum", "negate", "abs", "exponential"),
)


class Kernel(NamedTuple):
    """One kernel; `flops` and `bytes` are of one of its `times` runs.

    Attributes:
      collective: its kind, or "".
      sent: bytes that a device hands to the collective.
      scopes: paths of JAX's names, its own first, then those of what is fused in it.
    """

    name: str
    op: str
    times: int
    bytes: float
    products: tuple[Product, ...] = ()
    collective: str = ""
    sent: float = 0.0
    scopes: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        return sum(p.flops for p in self.products)


def read(text: str) -> list[Kernel]:
    """The kernels of a compiled program (`compiled.as_text()`), loops unrolled in
    `times`; of a conditional those of its branch that moves the fewest bytes."""
    module = parse(text)
    return list(_kernels(module, module["ENTRY"], 1))


def _kernels(module: Module, computation: Computation, times: int) -> Iterator[Kernel]:
    for made in computation.instructions.values():
        if made.op in _FREE or made.op.endswith(("-done", "-update")):
            continue
        if made.op == "while":
            inner = module[made.calls("body")[0]]
            yield from _kernels(module, inner, times * trip_count(module, made))
        elif made.op in ("call", "async-start"):
            for name in made.calls("to_apply", "calls", "called_computations"):
                yield from _kernels(module, module[name], times)
        elif made.op == "conditional":
            attributes = ("branch_computations", "true_computation", "false_computation")
            branches = [
                list(_kernels(module, module[name], times))
                for name in made.calls(*attributes)
            ]
            yield from min(branches, key=lambda ks: sum(k.bytes * k.times for k in ks))
        else:
            yield _kernel(module, computation, made, times)


def trip_count(module: Module, loop: Instruction) -> int:
    """Of a loop, as XLA says; else the bound that its condition compares with; else 1."""
    known = re.search(r'known_trip_count"?:\{"?n"?:"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    condition = module[loop.calls("condition")[0]]
    if condition.root.op == "compare" and "direction=LT" in condition.root.rest:
        for operand in condition.operands(condition.root):
            if operand.op == "constant" and operand.literal.isdecimal():
                return int(operand.literal)
    return 1


def _kernel(module, computation, made: Instruction, times: int) -> Kernel:
    inside = list(_inside(module, computation, made))
    products = tuple(p for place, i in inside if (p := product_of(place, i)) is not None)
    shared = [(p, i) for p, i in inside if i.op.removesuffix("-start") in COLLECTIVES]
    kind = shared[0][1].op.removesuffix("-start") if shared else ""
    sent = sum(a.bytes for p, i in shared for o in p.operands(i) for a in o.arrays)
    own = (made.scope, *(i.scope for _, i in inside if i is not made))
    moved = 2 * sent if kind else _moved(module, computation, made)
    return Kernel(made.name, made.op, times, moved, products, kind, sent, own)


def _inside(module, computation, made) -> Iterator[tuple[Computation, Instruction]]:
    """The instruction and what is fused in it, each with where it stands."""
    yield computation, made
    if made.op == "fusion":
        for name in made.calls("calls"):
            for inner in module[name].instructions.values():
                yield from _inside(module, module[name], inner)


# --------------------------------------------------------------------------------- bytes


def _moved(module: Module, computation: Computation, made: Instruction) -> float:
    operands = computation.operands(made)
    if made.op == "copy-start":  # its result names both ends, and a token
        return _stored(made.arrays[:2])
    if made.op in ("slice-start", "dynamic-slice-start"):  # operands, result, token
        result = made.arrays[len(operands)]
        return result.bytes + _stored((result,))
    if made.op in _SLICES:
        return 2 * _stored(made.arrays) + sum(_stored(o.arrays) for o in operands[1:])
    if made.op == "dynamic-update-slice":
        return 2 * _stored(operands[1].arrays)
    if made.op != "fusion":
        return _stored(made.arrays) + sum(_stored(o.arrays) for o in operands)
    inner = module[made.calls("calls")[0]]
    parameters = [i for i in inner.instructions.values() if i.op == "parameter"]
    parameters.sort(key=lambda i: int(i.literal))
    used, moved = _used(inner), _written(inner, made)
    for parameter, operand in zip(parameters, operands, strict=False):
        whole = max(_size(parameter), 1.0)
        moved += _stored(operand.arrays) * min(1.0, used[parameter.name] / whole)
    return moved


def _stored(arrays: tuple[Array, ...]) -> float:
    return sum(a.bytes for a in arrays if not a.on_chip)


def _written(inner: Computation, made: Instruction) -> float:
    """A fusion's result; of one that is changed in place, what changes."""
    root = inner.root
    while root.op in ("bitcast", "copy") and inner.operands(root):
        root = inner.operands(root)[0]
    if root.op == "dynamic-update-slice" and not made.arrays[0].on_chip:
        return _stored(inner.operands(root)[1].arrays)
    return _stored(made.arrays)


def _used(inner: Computation) -> dict[str, float]:
    """{instruction of a fusion: entries of its result that anything looks at}.

    A fusion makes an entry only where it is asked for: of what a slice takes nothing
    but that, also through operations that make one entry of one.
    """
    used = dict.fromkeys(inner.instructions, 0.0)
    used[inner.root.name] = math.inf
    for made in reversed(inner.instructions.values()):
        for name, count in _reads(inner, made, min(used[made.name], _size(made))).items():
            used[name] += count
    return used


def _reads(inner: Computation, made: Instruction, wanted: float) -> dict[str, float]:
    """{operand: entries that an instruction reads of it for `wanted` of its own}."""
    reads: dict[str, float] = {}
    for operand in reversed(inner.operands(made)):  # the first one decides
        by_entry = made.op in _BY_ENTRY and _size(operand) == _size(made)
        reads[operand.name] = wanted if by_entry else math.inf
        if operand.name == made.operands[0] and made.op in _SLICES:
            reads[operand.name] = _size(made)
        elif operand.name == made.operands[0] and made.op == "dynamic-update-slice":
            reads[operand.name] = 0.0
    return reads


def _size(made: Instruction) -> float:
    return float(sum(a.size for a in made.arrays))
