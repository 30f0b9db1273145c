"""What the kernels of a compiled program cost: product FLOPs, bytes, collectives.

A kernel is what a device starts at once: a fusion, a product, a copy, a library's call.

    FLOPs    2 x multiplications of its matrix products and convolutions
    bytes    read and written in the device's memory, once each; of a slice its part only
    times    iterations of the loops around it

XLA's own `cost_analysis` counts the body of a loop once, and nothing in a library's call.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from bpfree.hardware.hlo import Array, Computation, Instruction, Module, parse

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


class Product(NamedTuple):
    """FLOPs of a matrix product or convolution.

    Attributes:
      precision: "bf16" for operands of at most 16 bits, "f32", or "highest".
    """

    flops: float
    precision: str
    scope: str


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
    products = tuple(p for place, i in inside if (p := _product(place, i)) is not None)
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
    pairs = zip(parameters, operands, strict=False)
    return _written(inner, made) + sum(_used(inner, p, o) for p, o in pairs)


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


def _used(inner: Computation, parameter: Instruction, operand: Instruction) -> float:
    """What a fusion reads of an operand: the slices, if nothing else looks at it."""
    whole = _stored(operand.arrays)
    users = [i for i in inner.instructions.values() if parameter.name in i.operands]
    read = 0.0
    for user in users:
        if user.op in _SLICES and user.operands[0] == parameter.name:
            read += sum(a.bytes for a in user.arrays)
        elif user.op != "dynamic-update-slice" or user.operands[0] != parameter.name:
            return whole
    return min(whole, read) if users else 0.0


# ----------------------------------------------------------------------------- products


def _product(computation: Computation, made: Instruction) -> Product | None:
    operands = computation.operands(made)
    flops: float
    if made.op == "dot":
        flops = 2 * made.arrays[0].size * _contracted(made, operands[0].arrays[0])
    elif made.op == "convolution":
        flops = _convolution(made, *(o.arrays[0] for o in operands[:2]))
    elif made.op == "custom-call" and re.search(r"gemm|matmul", made.rest):
        flops = 2 * made.arrays[0].size * _contracted(made, operands[0].arrays[0])
    elif made.op == "custom-call" and "dim_labels=" in made.rest:
        flops = _library_convolution(made, *(o.arrays[0] for o in operands[:2]))
    else:
        return None
    return Product(flops, _precision(made, operands[0].arrays[0]), made.scope)


def _precision(made: Instruction, operand: Array) -> str:
    if operand.bytes <= 2 * operand.size:
        return "bf16"
    highest = re.search(r'operand_precision"?[=:][\[{]"?highest', made.rest, re.I)
    return "highest" if highest else "f32"


def _contracted(made: Instruction, lhs: Array) -> int:
    """Terms of each sum of a product."""
    found = re.search(
        r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([^\]}]*)[\]}]', made.rest
    )
    axes = re.findall(r"\d+", found[1]) if found else [len(lhs.dims) - 1]
    return math.prod(lhs.dims[int(axis)] for axis in axes)


def _labels(made: Instruction) -> list[str]:
    """Letters of lhs, kernel and output: b, f, i, o, and digits for space."""
    return re.split("_|->", re.search(r"dim_labels=([\w\->]+)", made.rest)[1])  # type: ignore[index]


def _convolution(made: Instruction, lhs: Array, kernel: Array) -> float:
    """2 x the multiplications that meet no padding and no hole of a dilated input.

    A TPU writes every product this way, batch axes as space with holes.
    """
    on_lhs, on_kernel, on_out = _labels(made)
    out, total = made.arrays[0].dims, 2.0
    for letter in "bf":
        total *= out[on_out.index(letter)]
    total *= kernel.dims[on_kernel.index("i")]
    window = dict(re.findall(r"(\w+)=([\w\-]+)", _window(made)))
    for axis in (c for c in on_kernel if c.isdigit()):
        place = int(axis)
        lengths = (lhs.dims[on_lhs.index(axis)], kernel.dims[on_kernel.index(axis)])
        total *= _pairs(*lengths, out[on_out.index(axis)], *_strides(window, place))
    return total


def _window(made: Instruction) -> str:
    found = re.search(r"window=\{([^}]*)\}", made.rest)
    return found[1] if found else ""


def _strides(window: dict[str, str], axis: int) -> tuple[int, int, int, int]:
    """(stride, low padding, dilation of the input, dilation of the kernel) of an axis."""

    def part(key, default):
        return window[key].split("x")[axis] if key in window else default

    low = re.match(r"-?\d+", part("pad", "0_0"))
    return (
        int(part("stride", "1")),
        int(low[0]) if low else 0,
        int(part("lhs_dilate", "1")),
        int(part("rhs_dilate", "1")),
    )


def _pairs(size, taps, out, stride, low, holes, spread) -> int:
    """(output, tap) pairs of one axis that meet an entry of the input."""
    last = (size - 1) * holes
    starts = (o * stride - low for o in range(out))
    places = (s + t * spread for s, t in itertools.product(starts, range(taps)))
    return sum(0 <= p <= last and p % holes == 0 for p in places)


def _library_convolution(made: Instruction, first: Array, second: Array) -> float:
    """Of cuDNN's calls: 2 x outputs x taps x channels, whichever of the three is made."""
    result = made.arrays[0]
    if "BackwardFilter" in made.rest:
        outputs, kernel = second, result
    elif "BackwardInput" in made.rest:
        outputs, kernel = first, second
    else:
        outputs, kernel = result, second
    channels = kernel.dims[_labels(made)[1].index("o")]
    return 2 * outputs.size * kernel.size / channels
