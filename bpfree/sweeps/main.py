"""The command line of sweeps.

    bpfree-sweep --config=configs/digits.py --workdir=runs/sweep
    bpfree-sweep --config=configs/digits.py --workdir=runs/search --search=tpe --trials=40
    bpfree-sweep report --workdir=runs/sweep

`--config.entry=value` overrides the entry of every point. The same command goes on where
a killed sweep stopped.
"""

import json
import re
import runpy
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from bpfree.sweeps import cluster, points, report, schedule, search
from bpfree.sweeps.ledger import Record
from bpfree.training.names import ConfigError
from bpfree.training.workdir import WorkdirError, replace

# The launcher's module defines --config and --workdir.
from bpfree.training import main as launcher  # isort: skip

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


def main(argv: list[str]) -> None:
    try:
        if argv[1:] == ["report"]:
            print(_report())
        elif argv[1:]:
            raise app.UsageError(f"'report' or nothing at all, not {argv[1:]}")
        elif launcher.CONFIG.value is None:
            raise app.UsageError("--config is missing")
        else:
            _sweep()
    except (ConfigError, WorkdirError) as error:
        sys.exit(f"bpfree-sweep: {error}")
    except schedule.Stopped as error:
        print(f"bpfree-sweep: {error}", file=sys.stderr)
        sys.exit(128 + error.signum)


def _sweep() -> None:
    flags_ = _config_flags(sys.argv)
    path, _, arg = flags_[0].partition("=")[2].partition(":")
    wanted = "get_search" if _SEARCH.value else "get_sweep"
    get_config, get_points = _functions(path, wanted)
    given = [f.partition("=")[0].removeprefix("--config.") for f in flags_[1:]]
    base = lambda: _fresh(get_config, arg, given, launcher.CONFIG.value)  # noqa: E731
    workdir = Path(launcher.WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    replace(workdir / "sweep.json", json.dumps({"flags": flags_}) + "\n")
    run = _search if _SEARCH.value else _points
    total, records = run(base, get_points(), workdir, _start())
    print(_report())
    failed = [r for r in records if r["status"] == "failed"]
    if failed:
        sys.exit(f"bpfree-sweep: {len(failed)} of {total} points failed")


def _start() -> schedule.Start:
    if not _CLUSTER.value:
        return schedule.start_process
    return cluster.make_start(_CLUSTER.value, dict(map(_option, _OPTIONS.value)))


def _search(base, space, workdir: Path, start) -> tuple[int, list[Record]]:
    """(trials in all, records of this directory)."""
    file = f"sqlite:///{workdir.absolute() / 'optuna.db'}"
    seed = zlib.crc32(f"{launcher.CONFIG.value.seed} {workdir.name}".encode())
    records = search.search(
        search.make_study(_SEARCH.value, seed, _STORAGE.value or file),
        space,
        lambda overrides: points.make_point(base(), overrides),
        workdir,
        trials=_TRIALS.value,
        workers=_WORKERS.value,
        start=start,
        told=_Teller(_TRIALS.value),
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
        told=_Teller(len(found)),
    )
    return len(found), [records[point.name] for point in found]


class _Teller:
    """Prints a line for each point that is finished."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __call__(self, record: Record) -> None:
        self.count += 1
        what = record.get("error") or f"validation {record['validation_accuracy']:.4f}"
        print(f"[{self.count}/{self.total}] {record['overrides']}: {what}", flush=True)


_EXAMPLES = {
    "get_sweep": "a list of points, such as [{'seed': s} for s in range(4)]",
    "get_search": "the ranges, such as {'schedule.init_value': ('log', 1e-4, 1e-1)}",
}


def _functions(path: str, wanted: str):
    found = runpy.run_path(path)
    if wanted not in found:
        raise ConfigError(
            f"{path} has no {wanted}(): add a function that returns {_EXAMPLES[wanted]}"
        )
    return found["get_config"], found[wanted]


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    return name, int(value) if value.isdecimal() else value


def _fresh(get_config, arg: str, given: Sequence[str], parsed: ConfigDict) -> ConfigDict:
    """A config with the command line's overrides; references are alive."""
    made = get_config(arg) if arg else get_config()
    for key in given:
        value: Any = parsed
        for name in key.split("."):
            value = value[name]
        points.override(made, key, value)
    return made


def _config_flags(argv: Sequence[str]) -> list[str]:
    """--config=... and the overrides, the former first, each with two dashes."""
    ours = [re.sub("^--?", "--", a) for a in argv[1:] if re.match(r"--?config[.=]", a)]
    return sorted(ours, key=lambda a: not a.startswith("--config="))


def _report() -> str:
    workdir = Path(launcher.WORKDIR.value)
    try:
        flags_ = json.loads((workdir / "sweep.json").read_text())["flags"]
    except FileNotFoundError as error:
        raise WorkdirError(f"{workdir} holds no sweep") from error
    return report.text(workdir, flags_)


def run() -> None:
    """The console script `bpfree-sweep`."""
    flags.mark_flags_as_required(["workdir"])
    app.run(main, flags_parser=launcher.parse)


if __name__ == "__main__":
    run()
