"""A process that runs one point, or several in one program.

    python -m bpfree.sweeps.worker FOLDER NAME...

`FOLDER/points/NAME/point.json` says what to run, and `result.json` next to it what came
of it. Its standard input is a pipe from the scheduler: when that ends, the worker does.
"""

import argparse
import hashlib
import json
import os
import sys
import threading
from pathlib import Path

from bpfree.sweeps import result
from bpfree.training.interrupt import Interrupted

NOT_TOGETHER = 3
"""Exit status of a group that did not run as one program; the points may, one by one."""


def folder_of(sweep: Path, name: str) -> Path:
    """Where a point of a sweep has its files."""
    return sweep / "points" / name


def run(sweep: Path, names: list[str]) -> int:
    """Run the points; the exit status."""
    try:
        return _alone(sweep, names[0]) if len(names) == 1 else _together(sweep, names)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 128 + error.signum


def _alone(sweep: Path, name: str) -> int:
    from bpfree.training import config, fit, job, metrics

    folder = folder_of(sweep, name)
    made = _config(folder)
    try:
        fit(made, folder)
    except Interrupted:
        raise
    except Exception as error:  # of all kinds: XLA's, Orbax's, the user's own
        result.write(folder, result.failed(f"{type(error).__name__}: {error}"))
        raise
    records = metrics.read(folder)
    metric = job.find_metrics(config.read(made))[0]
    result.write(folder, result.done(records[-1], metrics.logs_of(records), metric))
    return 0


def _together(sweep: Path, names: list[str]) -> int:
    from bpfree.sweeps.together import Runs, fit_together

    folders = [folder_of(sweep, name) for name in names]
    configs = [_config(folder) for folder in folders]
    name = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]
    runs = Runs(sweep / "groups" / name, folders, configs)
    try:
        results = fit_together(runs)
    except Interrupted:
        raise
    except Exception as error:  # too much memory, say: the points may run one by one
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return NOT_TOGETHER
    for folder, found in zip(folders, results, strict=True):
        result.write(folder, found)
    return 0


def _config(folder: Path):
    return json.loads((folder / "point.json").read_text())["config"]


def end_with_parent() -> None:
    """Exit when the other end of the standard input is closed."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--cores", default="", help="CPU cores to use: 0,1")
    parser.add_argument("--attached", action="store_true", help="end with standard input")
    args = parser.parse_args()
    if args.attached:
        end_with_parent()
    if args.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    from bpfree.training.cache import keep_compiled

    keep_compiled()
    sys.exit(run(args.sweep, args.names))


if __name__ == "__main__":
    main()
