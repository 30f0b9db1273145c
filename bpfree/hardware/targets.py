"""Devices that need not be here: what their vendors say of them, and their topologies.

tpu:v5e:4x4     a slice of TPUs, chips along each axis; pip install 'bpfree[tpu]'
h100:8          GPUs joined by NVLink;                  pip install 'bpfree[cuda]'
cpu:8           virtual devices of this machine, without a roofline
"""

import difflib
import functools
import importlib.util
import math
import os
import re
from string import Template
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from bpfree.hardware.chips import GPUS, TPUS, Chip, data_file


class HardwareError(ValueError):
    """What cannot be compiled for a target; the message says what to change.

    Example:
        >>> from bpfree import hardware
        >>> try:
        ...     hardware.find("h1000:8")
        ... except hardware.HardwareError as error:
        ...     print(str(error)[:46])
        target 'h1000:8' is unknown. Did you mean 'h10
    """


class Target(NamedTuple):
    """What to compile for.

    Attributes:
      text: as the user writes it.
      kind: "tpu", "cuda" or "cpu".
      chip: its data sheet; None for a CPU, of which none is known.
      shape: chips along each axis of a TPU's slice; (devices,) otherwise.

    Example:
        >>> from bpfree import hardware
        >>> target = hardware.find("tpu:v5e:4x4")
        >>> target.kind, target.shape, target.size
        ('tpu', (4, 4), 16)
    """

    text: str
    kind: str
    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Devices in it."""
        return math.prod(self.shape) * (self.chip.per_chip if self.chip else 1)


def find(text: str) -> Target:
    """The target of a name such as "tpu:v5e:4x4", "h100:8" or "cpu:8".

    Args:
      text: kind of chip and size: "tpu:" with v4, v5e, v5p or v6e and the chips along
        each axis; a100, h100, h200, b200 or cpu and the number of devices.

    Raises:
      HardwareError: the name is none of a target; the message lists the choices.

    Example:
        >>> from bpfree import hardware
        >>> hardware.find("h100:8").size
        8
    """
    is_tpu = text.startswith("tpu:")
    name, _, size = text.removeprefix("tpu:").partition(":")
    chips = TPUS if is_tpu else {**GPUS, "cpu": None}
    if name not in chips:
        names = [*(f"tpu:{n}:2x2" for n in TPUS), *(f"{n}:8" for n in GPUS), "cpu:8"]
        close = difflib.get_close_matches(text, names, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise HardwareError(
            f"target {text!r} is unknown.{hint} The choices are, with other sizes, "
            f"{', '.join(names)}"
        )
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}" if is_tpu else r"([1-9]\d*)?", size):
        example = f"tpu:{name}:4x4" if is_tpu else f"{name}:8"
        raise HardwareError(f"target {text!r} needs a size, such as {example!r}")
    shape = tuple(int(n) for n in size.split("x")) if size else (1,)
    kind = "tpu" if is_tpu else "cpu" if name == "cpu" else "cuda"
    return Target(text, kind, chips[name], shape)


def stay_on_cpu(target: Target) -> None:
    """Before JAX is used: look for no accelerator; have enough CPU devices."""
    try:
        count = target.size if target.kind == "cpu" else 1
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX is in use: its devices are what they are
        return
    jax.config.update("jax_platforms", "cpu")


def devices(target: Target | str) -> list[Any]:
    """The devices of a target; for absent ones JAX compiles, and runs nothing.

    Args:
      target: a `Target`, or its name.

    Raises:
      HardwareError: the compiler is not installed, there are fewer CPU devices, or no
        such slice exists.

    Example:
        >>> from bpfree import hardware
        >>> [device.platform for device in hardware.devices("cpu:1")]
        ['cpu']
    """
    target = find(target) if isinstance(target, str) else target
    if target.kind == "cpu":
        present = jax.devices("cpu")
        if len(present) < target.size:
            raise HardwareError(
                f"target {target.text!r}: JAX has {len(present)} CPU devices. Before it "
                f"is used, say jax.config.update('jax_num_cpu_devices', {target.size})"
            )
        return present[: target.size]
    module, extra = {"tpu": ("libtpu", "tpu"), "cuda": (_CUDA, "cuda")}[target.kind]
    if not any(importlib.util.find_spec(name) for name in module.split()):
        raise HardwareError(
            f"target {target.text!r} needs its compiler: pip install 'bpfree[{extra}]' "
            "(Python 3.12 or newer); the hardware itself is not needed"
        )
    try:
        return _absent(target)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise HardwareError(f"target {target.text!r}: {reason}") from error


@functools.cache
def _absent(target: Target) -> list[Any]:
    """Always the same objects, so that a mesh and a report agree on them."""
    return list((_slice if target.kind == "tpu" else _gpus)(target).devices)


_CUDA = "jax_cuda13_plugin jax_cuda12_plugin"


def mesh(target: Target | str, **axes: int) -> Mesh:
    """A mesh on the devices of a target: `mesh("h100:8", sample=4, data=2)`.

    Args:
      target: a `Target`, or its name.
      axes: size of each axis, by name.

    Raises:
      HardwareError: as `devices`; or the axes do not take all of the devices.

    Example:
        >>> from bpfree import hardware
        >>> dict(hardware.mesh("cpu:1", sample=1).shape)
        {'sample': 1}
    """
    target = find(target) if isinstance(target, str) else target
    if math.prod(axes.values()) != target.size:
        raise HardwareError(
            f"a mesh of {' x '.join(map(str, axes.values()))} devices does not divide "
            f"over the {target.size} of {target.text!r}"
        )
    grid = np.array(devices(target), object).reshape(tuple(axes.values()))
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def _slice(target: Target):
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    generation = target.text.split(":")[1]
    name = f"{generation}:{'x'.join(map(str, target.shape))}"
    options = {}
    if math.prod(target.shape) < 4:  # less than a host
        options["chips_per_host_bounds"] = (*target.shape, 1, 1, 1)[:3]
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options)


def _gpus(target: Target):
    assert target.chip is not None
    capability, cores, lanes, clock, shared, cache = target.chip.gpu
    major, minor = capability.split(".")
    spec = Template(data_file("gpu.pbtxt")).substitute(
        {"name": target.text, "major": major, "minor": minor, "cores": cores},
        lanes=lanes,
        clock=clock,
        bandwidth=int(target.chip.bandwidth),
        memory=int(target.chip.memory),
        cache=cache << 20,
        shared=shared << 10,
        optin=(shared << 10) - 1024,
    )
    return topologies.get_topology_desc(
        target.text, platform="cuda", target_config=spec, topology=f"1x1x{target.size}"
    )
