"""Runs the points of a sweep: groups in one program each, the others as processes.

A group has all devices and cores to itself. Points that share no program run side by
side, one on each device, or on a share of the CPU's cores. This process never touches a
device; its workers end with it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from bpfree.sweeps import ledger, points, result, worker
from bpfree.sweeps.points import Point
from bpfree.sweeps.slots import Slot, cores, make_slots
from bpfree.training import interrupt
from bpfree.training.workdir import claimed, replace

Report = Callable[[ledger.Record], None]


class Handle(Protocol):
    """A worker that was started: a process, or a job of a cluster."""

    def poll(self) -> int | None:
        """The exit status, None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and stop."""


Start = Callable[[Path, Sequence[str], Slot], Handle]
"""(sweep's directory, names of points, slot) -> the worker."""


def sweep(
    found: Sequence[Point],
    workdir: str | Path,
    *,
    workers: int | None = None,
    together: bool = True,
    retry: bool = False,
    start: Start | None = None,
    report: Report = lambda record: None,
) -> dict[str, ledger.Record]:
    """Run points that the ledger of `workdir` does not have; {name: record} of all.

    Args:
      found: of `points.make_points`.
      workdir: made if need be; the same call goes on where a killed one stopped.
      workers: processes side by side; default one a device, or a CPU core.
      together: run points that share a program as one.
      retry: run failed points again.
      start: how a worker is started; default as a process of this machine.
      report: called with every new record.

    Raises WorkdirError: the directory is in use or cannot be written.
    """
    workdir = Path(workdir)
    with claimed(workdir):
        book = Book(workdir, {point.name: point for point in found}, report)
        todo = book.open(retry)
        grouped = points.groups(todo) if together else [[point] for point in todo]
        names = [[point.name for point in group] for group in grouped]
        alone = [n for n in names if len(n) == 1]
        start = start or start_process
        whole = Slot({}, cores())
        split: list[str] = []

        def close_group(names, status):
            split.extend(book.close(names, status))

        shared = [n for n in names if len(n) > 1]
        run(_from(shared), [whole], workdir, start, close_group)
        alone += [[name] for name in split]
        slots = make_slots(workers, len(alone))
        run(_from(alone), slots, workdir, start, book.close)
    return ledger.read(workdir)


# ----------------------------------------------------------------------------- the book


class Book(NamedTuple):
    """The ledger, and the points it is about."""

    workdir: Path
    points: Mapping[str, Point]
    report: Report

    def open(self, retry: bool) -> list[Point]:
        """Points to be run, with their point.json written; impossible ones are failed."""
        known = ledger.read(self.workdir)
        over = {n for n, r in known.items() if not (retry and r["status"] == "failed")}
        todo = [p for name, p in self.points.items() if name not in over]
        for point in todo:
            folder = worker.folder_of(self.workdir, point.name)
            finished = result.read(folder)
            if point.error is not None:
                self.note(point, result.failed(point.error))
            elif finished is not None and point.name not in known:
                self.note(point, finished)  # we were killed before this was noted
            else:
                (folder / "result.json").unlink(missing_ok=True)
                write_point(folder, point)
        noted = ledger.read(self.workdir).keys() - known.keys()
        return [p for p in todo if p.name not in noted and p.error is None]

    def close(self, names: Sequence[str], status: int) -> list[str]:
        """Note what became of a worker's points; the ones that have no result."""
        left = []
        for name in names:
            folder = worker.folder_of(self.workdir, name)
            found = result.read(folder)
            if found is None and len(names) > 1:
                left.append(name)
            else:
                self.note(self.points[name], found or lost(folder, status))
        return left

    def note(self, point: Point, found: result.Result) -> None:
        record = {"name": point.name, "overrides": point.overrides, **found}
        ledger.append(self.workdir, record)
        self.report(record)


def write_point(folder: Path, point: Point) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"overrides": point.overrides, "config": point.config}
    replace(folder / "point.json", json.dumps(record, indent=2) + "\n")


def lost(folder: Path, status: int) -> result.Result:
    """The result of a point whose worker ended before it wrote one."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; SIGKILL is what a machine out of memory sends" * (status == -9)
        return result.failed(f"the worker was ended by {name}{hint}")
    with contextlib.suppress(OSError):
        lines = (folder / "log.txt").read_text(errors="replace").strip().split("\n")
        return result.failed(f"the worker ended with status {status}: {lines[-1]}")
    return result.failed(f"the worker ended with status {status}")


# --------------------------------------------------------------------------- the workers


Jobs = Callable[[], Sequence[str] | None]
"""() -> names of the points of the next worker, or None."""


def _from(jobs: Sequence[Sequence[str]]) -> Jobs:
    waiting = list(jobs)
    return lambda: waiting.pop(0) if waiting else None


def run(
    jobs: Jobs,
    slots: Sequence[Slot],
    workdir: Path,
    start: Start,
    close: Callable[[Sequence[str], int], object],
    look: Callable[[Sequence[str], Handle], None] = lambda names, handle: None,
) -> None:
    """Keep one worker in each slot until there are no jobs.

    Args:
      close: called with the names and exit status of a worker that has ended.
      look: called for each that runs, again and again.

    Raises Interrupted.
    """
    running: dict[tuple[str, ...], tuple[Handle, Slot]] = {}
    free = list(slots)
    with interrupt.noted("the sweep") as came:
        try:
            while True:
                while free and (names := jobs()) is not None:
                    slot = free.pop(0)
                    running[tuple(names)] = start(workdir, names, slot), slot
                if not running:
                    break
                if came:
                    raise interrupt.Interrupted(came[0], "stopped")
                for key, (handle, slot) in list(running.items()):
                    status = handle.poll()
                    if status is None:
                        look(key, handle)
                    else:
                        del running[key]
                        free.append(slot)
                        close(key, status)
                time.sleep(0.05)
        finally:
            _end([handle for handle, _ in running.values()])


_PATIENCE = 60  # seconds in which workers may save and stop


def _end(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.terminate()
    until = time.monotonic() + _PATIENCE
    while any(h.poll() is None for h in handles) and time.monotonic() < until:
        time.sleep(0.05)


def start_process(workdir: Path, names: Sequence[str], slot: Slot) -> Handle:
    """A worker on this machine; what it says goes to log.txt of its first point."""
    command = [sys.executable, "-m", "bpfree.sweeps.worker", str(workdir), *names]
    command += ["--attached", "--cores=" + ",".join(map(str, slot.cores))]
    with (worker.folder_of(workdir, names[0]) / "log.txt").open("a") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **slot.environment},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us; we stop them
        )
