"""The command line of sweeps.

    bpfree-sweep --config=configs/digits.py --workdir=runs/sweep
    bpfree-sweep report --workdir=runs/sweep

`--config.entry=value` overrides the entry of every point. The same command goes on where
a killed sweep stopped.
"""

import json
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from bpfree.sweeps import points, report, schedule
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
    get_config, get_sweep = _functions(path)
    given = [f.partition("=")[0].removeprefix("--config.") for f in flags_[1:]]
    found = points.make_points(
        lambda: _fresh(get_config, arg, given, launcher.CONFIG.value), get_sweep()
    )
    workdir = Path(launcher.WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    replace(workdir / "sweep.json", json.dumps({"flags": flags_}) + "\n")
    told = _Teller(len(found))
    records = schedule.sweep(
        found,
        workdir,
        workers=_WORKERS.value,
        together=_TOGETHER.value,
        retry=_RETRY.value,
        told=told,
    )
    print(_report())
    names = {point.name for point in found}
    failed = [r for n, r in records.items() if n in names and r["status"] == "failed"]
    if failed:
        sys.exit(f"bpfree-sweep: {len(failed)} of {len(found)} points failed")


class _Teller:
    """Prints a line for each point that is finished."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def __call__(self, record: Record) -> None:
        self.count += 1
        what = record.get("error") or f"validation {record['validation_accuracy']:.4f}"
        print(f"[{self.count}/{self.total}] {record['overrides']}: {what}", flush=True)


def _functions(path: str):
    found = runpy.run_path(path)
    if "get_sweep" not in found:
        raise ConfigError(
            f"{path} has no get_sweep(): add a function that returns a list of points, "
            "such as [{'seed': s} for s in range(4)]"
        )
    return found["get_config"], found["get_sweep"]


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
