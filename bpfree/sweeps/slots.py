"""What workers may use: a GPU each, or a share of the CPU's cores."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Slot(NamedTuple):
    """What a worker may use: variables of its environment, and CPU cores."""

    environment: Mapping[str, str]
    cores: Sequence[int]


def make_slots(workers: int | None, jobs: int) -> list[Slot]:
    """One for each GPU, or for a share of the cores; not more than there are jobs.

    One slot alone may use everything.
    """
    mine, gpus = cores(), _gpus()
    count = max(1, min(workers or len(gpus) or len(mine), jobs))
    if count == 1:
        return [Slot({}, mine)]
    shares = [mine[i::count] or mine for i in range(count)]
    if not gpus:
        return [Slot({}, share) for share in shares]
    return [
        Slot({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}, share)
        for i, share in enumerate(shares)
    ]


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _gpus() -> list[str]:
    """The GPUs that a worker would see, without asking JAX, which would claim them."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d]
    with contextlib.suppress(OSError):
        names = [re.fullmatch(r"nvidia(\d+)", n) for n in os.listdir("/dev")]
        return sorted(m[1] for m in names if m)
    return []
