"""What one program costs on a device that need not be here: `report`."""

import inspect
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from bpfree.hardware import kernels, roofline, targets
from bpfree.hardware.kernels import Kernel
from bpfree.hardware.targets import HardwareError, Target


class Collective(NamedTuple):
    """Collectives of one kind: how many a step, and bytes that a device hands to them."""

    calls: float
    bytes: float


class Report(NamedTuple):
    """A compiled program, by its figures for one device and one step.

    Attributes:
      target: what it is compiled for.
      devices: how many of them it uses.
      steps: training steps in one call; the figures below are divided by it.
      memory: {argument, "scratch" or "results": bytes}; results that take an argument's
        place are not counted. It is that of a call.
      fits: whether that is within the device's memory; None on a CPU.
      kernels: how many it starts.
      flops: of its products.
      bytes: read and written in the device's memory.
      collectives: {kind: Collective}.
      seconds: {group of kernels: at least so long}; {} on a CPU, of which no peak is
        known. "noise" draws and unpacks, "products" are those of forward passes,
        "credit" sums weighted noise up, "pull" is the rest of the gradient.
      compile_seconds: how long the compiler took.
      inference: seconds of plain inference of the examples that a step processes, at
        least; None if it was not asked for.

    Example:
        >>> from bpfree import hardware
        >>> x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
        >>> found = hardware.report(lambda a, b: a @ b, (x, x), "cpu:1")
        >>> found.flops, found.devices, found.step_seconds
        (1024.0, 1, None)
    """

    target: Target
    devices: int
    steps: int
    memory: dict[str, float]
    fits: bool | None
    kernels: float
    flops: float
    bytes: float
    collectives: dict[str, Collective]
    seconds: dict[str, float]
    compile_seconds: float
    inference: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """Of one step at least, validation apart; None on a CPU."""
        if not self.seconds:
            return None
        return sum(s for group, s in self.seconds.items() if group != "validation")

    @property
    def share_of_inference(self) -> float | None:
        """Inference of the same examples by the step; above 1 the step is cheaper."""
        if self.inference is None or not self.step_seconds:
            return None
        return self.inference / self.step_seconds

    def __str__(self) -> str:
        from bpfree.hardware.table import table

        return table({"": self})


def report(
    step: Callable[..., Any],
    args: tuple,
    target: Target | str,
    *,
    steps: int = 1,
    inference: float | None = None,
) -> Report:
    """Compile `step(*args)` for a target and say what it costs; nothing is run.

    Args:
      step: a function of arrays; made by `jax.jit`, it keeps its donations.
      args: arrays, or their shapes. A sharding over `hardware.mesh(target, ...)` is kept;
        the first device has what has none, or all devices of that mesh have.
      target: see `bpfree.hardware.find`.
      steps: training steps in one call.
      inference: seconds that plain inference takes, `report(...).step_seconds` of it.

    Returns:
      A `Report`; print it for a table.

    Raises:
      HardwareError: the target is unknown, its compiler is not installed, or the program
        does not fit (a TPU's compiler refuses it).

    Example:
        >>> from bpfree import hardware
        >>> x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
        >>> hardware.report(lambda a, b: a @ b, (x, x), "cpu:1").flops == 2 * 256**3
        True
    """
    target = targets.find(target) if isinstance(target, str) else target
    placed, devices = _placed(args, targets.devices(target))
    jitted: Any = step if hasattr(step, "lower") else jax.jit(step)
    begun = time.perf_counter()
    try:
        compiled = jitted.lower(*placed).compile()
    except jax.errors.JaxRuntimeError as error:
        raise _refused(error, target) from error
    seconds = time.perf_counter() - begun
    found = kernels.read(compiled.as_text())
    memory = _memory(compiled, step, placed)
    limit = target.chip and target.chip.memory
    return Report(
        target=target,
        devices=devices,
        steps=steps,
        memory=memory,
        fits=None if limit is None else sum(memory.values()) <= limit,
        kernels=sum(k.times for k in found) / steps,
        flops=sum(k.times * k.flops for k in found) / steps,
        bytes=sum(k.times * k.bytes for k in found) / steps,
        collectives=_collectives(found, steps),
        seconds=roofline.seconds(found, target.chip, steps),
        compile_seconds=seconds,
        inference=inference,
    )


def _placed(args: tuple, devices: list[Any]) -> tuple[tuple, int]:
    """The shapes of the arguments, on the target; and how many devices they take."""
    leaves = jax.tree.leaves(args)
    given = [getattr(leaf, "sharding", None) for leaf in leaves]
    meant = [
        s
        for s in given
        if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)
        if set(s.mesh.devices.flat) <= set(devices)
    ]
    default: Any = SingleDeviceSharding(devices[0])
    if meant:
        default = NamedSharding(meant[0].mesh, PartitionSpec())

    def place(leaf):
        sharding = getattr(leaf, "sharding", None)
        sharding = sharding if sharding in meant else default
        kind = jax.eval_shape(lambda: leaf) if not hasattr(leaf, "dtype") else leaf
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding)

    return jax.tree.map(place, args), default.num_devices


def _refused(error: Exception, target: Target) -> Exception:
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text:
        return HardwareError(f"target {target.text!r}: {text[:400]}")
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", text)
    sizes = f" {used[1]} of {used[2]} bytes" if used else ""
    return HardwareError(
        f"the program does not fit on {target.text!r}: it takes{sizes or ' too much'} of "
        f"a device's memory. {TOO_MUCH}"
    )


TOO_MUCH = (
    "Lower chunk_size or batch_size, or spread the batch over more devices "
    "(config.mesh='data:N')"
)


# ------------------------------------------------------------------------------ figures


def _memory(compiled, step, args: tuple) -> dict[str, float]:
    """Of one device, by argument of the step."""
    try:
        names = list(inspect.signature(step).parameters)
    except (TypeError, ValueError):
        names = []
    names += [f"argument {i}" for i in range(len(names), len(args))]
    sizes = map(_per_device, args)
    plan = compiled.memory_analysis()
    results = plan.output_size_in_bytes - plan.alias_size_in_bytes
    known = dict(zip(names, sizes, strict=False))
    return {**known, "scratch": plan.temp_size_in_bytes, "results": max(results, 0)}


def _per_device(tree: Any) -> float:
    def size(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
            return np.prod(leaf.shape) * leaf.dtype.itemsize
        shape = leaf.sharding.shard_shape(leaf.shape)
        return np.prod(shape) * leaf.dtype.itemsize

    return float(sum(map(size, jax.tree.leaves(tree))))


def _collectives(found: list[Kernel], steps: int) -> dict[str, Collective]:
    total: dict[str, Collective] = {}
    for k in filter(lambda k: k.collective, found):
        count, sent = total.get(k.collective, (0.0, 0.0))
        times = k.times / steps
        total[k.collective] = Collective(count + times, sent + times * k.sent)
    return total
