"""One run on many processes, usually one a machine: who they are, and what they agree on.

Started by flags, or by the variables of SLURM or Open MPI. Every process runs the same
program on the same config and a shared directory; the first one, process 0, keeps the
record.
"""

import faulthandler
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bpfree.training.names import ConfigError

_HEARTBEAT = 30  # seconds without a sign of life until a process counts as lost
_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_RANKS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def initialize(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join the other processes of the run, if there are any; before JAX is used.

    Args:
      coordinator: host:port of process 0.
      count: processes in all.
      index: of this one, 0 .. count - 1.

    What is missing is taken from the variables that `srun` and `mpirun` set.

    Raises ConfigError: something is still missing or out of range, or the others do not
    come.
    """
    found = _launched()
    if found is None and coordinator is None and count is None and index is None:
        return
    if found is not None:
        count = found[0] if count is None else count
        index = found[1] if index is None else index
    given = {"coordinator": coordinator, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and not (found and coordinator is None):
        raise ConfigError(f"many processes need {', '.join(missing)}, too")
    if count is not None and index is not None and not 0 <= index < count:
        raise ConfigError(f"--process_id={index} must be 0 to {count - 1}")
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=120,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"the processes of the run do not meet: {error}") from error
    faulthandler.disable()  # JAX ends us when others are lost; it says so in a line


def _launched() -> tuple[int, int] | None:
    """(processes, index) where `srun` or `mpirun` has started more than this one."""
    for size, rank in zip(_SIZES, _RANKS, strict=True):
        if int(os.environ.get(size, "1")) > 1 and rank in os.environ:
            return int(os.environ[size]), int(os.environ[rank])
    return None


def is_main() -> bool:
    """Whether this process keeps the record."""
    return jax.process_index() == 0


def only_main(function: Callable[..., None]) -> Callable[..., None]:
    """The function in process 0; in the others nothing."""
    return function if is_main() else lambda *args, **kwargs: None


def agree(pace: int, stop: bool) -> tuple[int, bool]:
    """The pace of process 0, and whether any process stops; all of them must ask."""
    if jax.process_count() == 1:
        return pace, stop
    found = multihost_utils.process_allgather(np.asarray([pace, stop]))
    return int(found[0, 0]), bool(found[:, 1].any())


def wait(name: str) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def lost(error: BaseException) -> str:
    """What to say of an error that came while processes talked to each other."""
    text = " ".join(str(error).split())
    return (
        f"another process of the run has ended, or cannot be reached (process "
        f"{jax.process_index()} of {jax.process_count()} saw: {text[:200]}). The same "
        "command goes on from the last checkpoint, on as many processes as there are."
    )


def leave(status: Any) -> None:
    """End at once: without the others, an orderly end would wait for them in vain."""
    os._exit(status)
