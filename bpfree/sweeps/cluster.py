"""Workers as jobs of a cluster, through submitit: the same points, the same directory.

`--cluster=slurm` submits to SLURM; `local` and `debug` are submitit's own stand-ins.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import submitit

from bpfree.sweeps import schedule, worker
from bpfree.training.names import ConfigError


def make_start(cluster: str, options: Mapping[str, Any]) -> schedule.Start:
    """How `schedule.sweep` starts a worker there.

    Args:
      cluster: "slurm", "local" or "debug".
      options: submitit's parameters, {"timeout_min": 60, "slurm_partition": "gpu"} say.

    Raises ConfigError: submitit refuses an option.
    """

    def executor(folder: Path) -> submitit.AutoExecutor:
        made = submitit.AutoExecutor(folder=folder, cluster=cluster)
        made.update_parameters(name="bpfree-sweep", **options)
        return made

    def start(
        workdir: Path, names: Sequence[str], slot: schedule.Slot
    ) -> schedule.Handle:
        job = executor(workdir / "cluster").submit(worker.run, workdir, list(names))
        return _Job(job, workdir, names)

    try:
        with tempfile.TemporaryDirectory() as folder:
            executor(Path(folder))
    except (ValueError, TypeError, NameError, RuntimeError) as error:
        raise ConfigError(f"--cluster={cluster}: {error}") from error
    return start


class _Job(NamedTuple):
    job: Any
    workdir: Path
    names: Sequence[str]

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        if error is None:
            return self.job.result()
        log = worker.folder_of(self.workdir, self.names[0]) / "log.txt"
        last = str(error).strip().split("\n")[-1]
        with log.open("a") as file:
            file.write(f"job {self.job.job_id} ({self.job.state}): {last}\n")
        return 1

    def terminate(self) -> None:
        self.job.cancel()
