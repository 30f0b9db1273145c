"""Chips by their data sheets, of `chips.toml`."""

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

GB, TB = 1e9, 1e12


class Chip(NamedTuple):
    """One device, by its data sheet.

    Attributes:
      bf16, f32, highest: FLOP/s of dense products at most: 16-bit operands; float32 ones
        at JAX's default precision (TF32 on a GPU, bfloat16 on a TPU); and at the highest
        (six bfloat16 products on a TPU).
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      link: bytes/s that a device can send to the others, all its links together.
      gpu: what XLA asks of a GPU, in the order of `chips.toml`; () for a TPU.
      per_chip: JAX devices in a chip; all else is of one device.
    """

    bf16: float
    f32: float
    highest: float
    memory: float
    bandwidth: float
    link: float
    gpu: tuple = ()
    per_chip: int = 1


def _chip(gpu: Sequence[Any] = (), devices: int = 1, **sheet: float) -> Chip:
    """A device of a chip in `chips.toml`, which JAX sees as `devices` of them."""
    whole = {"f32": sheet["bf16"], "highest": sheet["bf16"] / 6, **sheet}
    units = dict.fromkeys(("memory", "bandwidth", "link"), GB)
    each = {key: v * units.get(key, TB) / devices for key, v in whole.items()}
    return Chip(**each, gpu=tuple(gpu), per_chip=devices)


def data_file(name: str) -> str:
    """The text of a file of this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


_SHEETS = tomllib.loads(data_file("chips.toml"))
TPUS = {name: _chip(**sheet) for name, sheet in _SHEETS["tpu"].items()}
GPUS = {name: _chip(**sheet) for name, sheet in _SHEETS["gpu"].items()}
