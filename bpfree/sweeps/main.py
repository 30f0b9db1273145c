"""The command line of sweeps.

    bpfree-sweep --config=configs/digits.py --workdir=runs/sweep
    bpfree-sweep --config=configs/digits.py --workdir=runs/search --search=tpe --trials=40
    bpfree-sweep report --workdir=runs/sweep

`--config.entry=value` overrides the entry of every point. The same command goes on where
a killed sweep stopped.
"""

import itertools
import json
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from bpfree.sweeps import points, report, result, schedule
from bpfree.sweeps.ledger import Record
from bpfree.training import command_line, config, config_files, job, resume
from bpfree.training.names import ConfigError, config_errors, imported
from bpfree.training.workdir import WorkdirError, replace, workdir_errors

_WORKERS: flags.FlagHolder[Any] = flags.DEFINE_integer(
    "workers", None, "Processes side by side; default: one a GPU, or one a CPU core.", 1
)
_TOGETHER = flags.DEFINE_bool(
    "together", True, "Run points that differ only in numbers as one program."
)
_RETRY = flags.DEFINE_bool("retry", False, "Run failed points again.")
_SEARCH: flags.FlagHolder[Any] = flags.DEFINE_string(
    "search", None, "Let Optuna choose in get_search(): random, tpe or halving."
)
_TRIALS = flags.DEFINE_integer("trials", 20, "Points of a search, on all machines.", 1)
_STORAGE: flags.FlagHolder[Any] = flags.DEFINE_string(
    "storage", None, "URL of Optuna's storage, to share; default: a file in workdir."
)
_CLUSTER: flags.FlagHolder[Any] = flags.DEFINE_string(
    "cluster", None, "Run workers as jobs of submitit: slurm, local or debug."
)
_OPTIONS = flags.DEFINE_multi_string(
    "cluster_option", [], "submitit's parameters, such as timeout_min=60; repeat."
)


def main(words: list[str]) -> None:
    if words:
        print(_report())
    else:
        _sweep()


def _sweep() -> None:
    flags_ = _config_flags(sys.argv)
    file = config_files.load(flags_[0].partition("=")[2])
    wanted = "get_search" if _SEARCH.value else "get_sweep"
    if wanted not in file.names:
        raise ConfigError(
            f"{file.path} has no {wanted}(): add a function that returns "
            f"{_EXAMPLES[wanted]}"
        )
    with config_errors(f"{wanted}()"):
        points = file.names[wanted]()
    base = lambda: _fresh(file, flags_[1:], command_line.config())  # noqa: E731
    workdir = Path(command_line.WORKDIR.value)
    resume.check_place(workdir, sweep=True)
    with workdir_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        replace(workdir / "sweep.json", json.dumps({"flags": flags_}) + "\n")
    run = _search if _SEARCH.value else _points
    total, records = run(base, points, workdir, _start())
    print(_report())
    failed = [r for r in records if r["status"] == "failed"]
    if failed:
        sys.exit(f"bpfree-sweep: {len(failed)} of {total} points failed")


def _start() -> schedule.Start:
    if not _CLUSTER.value:
        return schedule.start_process
    pairs = (option.partition("=")[::2] for option in _OPTIONS.value)
    options = {k: int(v) if v.isdecimal() else v for k, v in pairs}
    cluster: Any = imported("bpfree.sweeps.cluster", "--cluster", "submitit", "cluster")
    return cluster.make_start(_CLUSTER.value, options)


def _search(base, space, workdir: Path, start) -> tuple[int, list[Record]]:
    """(trials in all, records of this directory)."""
    search: Any = imported("bpfree.sweeps.search", "--search", "Optuna", "search")
    file = f"sqlite:///{workdir.absolute() / 'optuna.db'}"
    made = command_line.config()
    seed = zlib.crc32(f"{made.seed} {workdir.name}".encode())
    lower = job.find_metrics(config.read(made))[0].lower
    records = search.search(
        search.make_study(_SEARCH.value, seed, _STORAGE.value or file, lower),
        space,
        lambda overrides: points.make_point(base(), overrides),
        workdir,
        trials=_TRIALS.value,
        workers=_WORKERS.value,
        start=start,
        report=_progress(_TRIALS.value),
    )
    return _TRIALS.value, list(records.values())


def _points(base, sweep, workdir: Path, start) -> tuple[int, list[Record]]:
    """(points of the file, their records)."""
    found = points.make_points(base, sweep)
    records = schedule.sweep(
        found,
        workdir,
        workers=_WORKERS.value or (len(found) if _CLUSTER.value else None),
        together=_TOGETHER.value,
        retry=_RETRY.value,
        start=start,
        report=_progress(len(found)),
    )
    return len(found), [records[point.name] for point in found]


def _progress(total: int) -> schedule.Report:
    """Prints a line for each point that is finished."""
    counts = itertools.count(1)

    def report(record: Record) -> None:
        what = record.get("error") or f"validation {result.validation(record):.4f}"
        print(f"[{next(counts)}/{total}] {record['overrides']}: {what}", flush=True)

    return report


_EXAMPLES = {
    "get_sweep": "a list of points, such as [{'seed': s} for s in range(4)]",
    "get_search": "the ranges, such as {'schedule.init_value': ('log', 1e-4, 1e-1)}",
}


def _fresh(
    file: config_files.ConfigFile, overrides: Sequence[str], parsed: ConfigDict
) -> ConfigDict:
    """A config with the command line's overrides; references are alive."""
    made = file.config()
    for flag in command_line.named(made, overrides):
        key = flag.partition("=")[0].removeprefix("--config.")
        section, name = config_files.located(made, key)
        section[name] = config_files.located(parsed, key)[0][name]
    return config_files.absolute(made, Path.cwd())


def _config_flags(argv: Sequence[str]) -> list[str]:
    """--config=... and the overrides, the former first, each with two dashes."""
    given, others = command_line.split(argv)
    ours = [re.sub("^--?", "--", a) for a in others if re.match(r"--?config\.", a)]
    return [f"--config={given}", *ours]


def _report() -> str:
    workdir = Path(command_line.WORKDIR.value)
    if not (workdir / "sweep.json").exists():
        raise WorkdirError(f"{workdir} holds no sweep")
    return report.text(workdir)


_HELP = """Train the points of get_sweep() or get_search(), or go on with them.

    bpfree-sweep --config=digits --workdir=runs/sweep
    bpfree-sweep report --workdir=runs/sweep
"""


def run() -> None:
    """The console script `bpfree-sweep`."""
    command_line.run("bpfree-sweep", main, _HELP, __name__, words=["report"])


if __name__ == "__main__":
    run()
