"""The text of a compiled program (HLO), read: instructions, shapes, sizes.

    %name = bf16[256,4096]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop, calls=%c, ...

Only what the costs of `kernels.py` need. A layout with a memory space, S(1) for instance,
is on the chip: such arrays move no bytes of the device's memory.
"""

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}


class Array(NamedTuple):
    """One array of a shape; a tuple's shape has several.

    Attributes:
      dtype: "bf16", "f32", "pred", ...
      dims: sizes of its axes.
      on_chip: not in the device's memory.
    """

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Of one copy, wherever it lies."""
        known = _BITS.get(self.dtype)
        bits = re.search(r"\d+", self.dtype) if known is None else None
        return self.size * (int(bits[0]) if bits else known or 0) / 8


class Instruction(NamedTuple):
    """One line.

    Attributes:
      arrays: of its result.
      operands: names of its arguments.
      literal: what stands between its parentheses.
      rest: its attributes, as text.
    """

    name: str
    op: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str
    is_root: bool

    def calls(self, *attributes: str) -> list[str]:
        """Names of the computations that the attributes name, `calls` for instance."""
        named = rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%?[\w.\-]+)"
        found = re.findall(named, self.rest)
        return [name for names in found for name in re.findall(r"[\w.\-]+", names)]

    @property
    def scope(self) -> str:
        """The path of JAX's names, "jit(step)/while/body/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


class Computation(NamedTuple):
    """Instructions by name, in order; the last one written as ROOT is its result."""

    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        values = list(self.instructions.values())
        return next((i for i in values if i.is_root), values[-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        found = (self.instructions.get(name) for name in instruction.operands)
        return [i for i in found if i is not None]


Module = dict[str, Computation]
"""Computations by name; "ENTRY" is the program's own."""


def parse(text: str) -> Module:
    """The computations of an HLO module; raises ValueError: there is no entry."""
    module: Module = {}
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = {}
            module[head[2]] = Computation(current)
            if head[1]:
                module["ENTRY"] = module[head[2]]
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _LINE.match(line)):
            made = _instruction(found[2], found[3], bool(found[1]))
            current[made.name] = made
    if "ENTRY" not in module:
        raise ValueError("this text has no ENTRY: it is not the HLO of a program")
    return module


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, call = text[:end], text[end:].lstrip()
    op, _, tail = call.partition("(")
    end = _closing("(" + tail)
    literal, rest = tail[: end - 2], tail[end - 1 :]
    operands = tuple(re.findall(r"%([\w.\-]+)", literal))
    return Instruction(name, op, arrays(shape), operands, literal, rest, is_root)


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the first one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place + 1
    return len(text) + 1


def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape as it is written."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        sizes = tuple(int(re.sub(r"\D", "", d)) for d in dims.split(",") if d)
        found.append(Array(dtype, sizes, bool(re.search(r"S\([1-9]", layout or ""))))
    return tuple(found)
