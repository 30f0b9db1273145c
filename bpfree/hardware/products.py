"""FLOPs of the matrix products and convolutions of a compiled program."""

import itertools
import math
import re
from typing import NamedTuple

from bpfree.hardware.hlo import Array, Computation, Instruction


class Product(NamedTuple):
    """FLOPs of a matrix product or convolution.

    Attributes:
      precision: "bf16" for operands of at most 16 bits, "f32", or "highest".
    """

    flops: float
    precision: str
    scope: str


def product_of(computation: Computation, made: Instruction) -> Product | None:
    """What an instruction multiplies, itself or in a library; None if it does not."""
    library = made.op == "custom-call"
    arrays = [o.arrays[0] for o in computation.operands(made)[:2] if o.arrays]
    flops: float
    if made.op == "dot" or library and re.search(r"gemm|matmul", made.rest):
        flops = 2 * made.arrays[0].size * _contracted(made, arrays[0])
    elif made.op == "convolution":
        flops = _convolution(made, *arrays)
    elif library and "dim_labels=" in made.rest:
        flops = _library_convolution(made, *arrays)
    else:
        return None
    return Product(flops, _precision(made, arrays[0]), made.scope)


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
