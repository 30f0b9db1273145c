"""Whether the run in a working directory is this one, and its record opened."""

import copy
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bpfree.training import config, metrics
from bpfree.training.names import ConfigError
from bpfree.training.workdir import WorkdirError, replace


def check(workdir: Path, wanted: Any, source: dict[str, Any]) -> None:
    """Refuse to go on with another config or other data than the run began with.

    A larger `num_steps` is no other config, nor are entries that follow it by reference.

    Args:
      wanted: the config, a ConfigDict or a dict.
      source: of the data set, wherever it lies now.

    Raises ConfigError naming what differs; WorkdirError if the run's record is damaged.
    """
    begun_with = read_config(workdir)
    record = config.as_json(_shortened(wanted, begun_with.get("num_steps")))
    changed = config.differences(begun_with, record)
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another config; these differ: "
            f"{', '.join(sorted(changed))}. Choose another --workdir, or restore "
            f"the values in {workdir / 'config.json'}."
        )
    begun = _data(workdir)
    if begun is None:
        raise WorkdirError(
            f"{metrics.path_of(workdir)} has lost its header, so which data the run is "
            "on is unknown. Restore it, or choose another --workdir."
        )
    if changed := other_data(workdir, source):
        raise ConfigError(
            f"{workdir} holds a run on other data; these differ: {', '.join(changed)}. "
            f"Choose another --workdir, or restore the data: {begun}."
        )


def other_data(workdir: Path, source: dict[str, Any]) -> list[str]:
    """What differs between the data that a run is on, as far as it says, and others."""
    begun = _data(workdir) or source
    return config.differences({**begun, "from": ""}, {**source, "from": ""}, "data")


def _data(workdir: Path) -> dict[str, Any] | None:
    """The source of the data in a run's header; None if that is lost."""
    records = metrics.read(workdir)
    return next((r["data"] for r in records if r["kind"] == "header"), None)


def _shortened(wanted: Any, num_steps: Any) -> Any:
    """The config with the number of steps that the run began with, if it has more now."""
    if not isinstance(num_steps, int) or wanted["num_steps"] <= num_steps:
        return wanted
    if not isinstance(wanted, ConfigDict):
        return {**wanted, "num_steps": num_steps}
    shorter = copy.deepcopy(wanted)  # references among its entries stay alive
    shorter.num_steps = num_steps
    return shorter


def extended(workdir: Path, num_steps: int, more: int) -> int:
    """The number of steps to ask for: `more` than a finished run in the directory has.

    One that is not finished goes on to the end it had; that of a new run is `num_steps`.
    """
    records = metrics.read(workdir)
    if not records:
        return num_steps
    recorded = read_config(workdir)["num_steps"]
    return recorded + more * (records[-1]["kind"] == "summary")


def check_place(workdir: Path, sweep: bool = False) -> None:
    """Refuse a run or a sweep inside a sweep's directory, or a sweep in a run's.

    Args:
      sweep: whether it is a sweep's own directory; else it is a run's.

    Raises WorkdirError.
    """
    own = workdir.absolute()
    for folder in own.parents if sweep else (own, *own.parents):
        if (folder / "sweep.json").exists():
            raise WorkdirError(
                f"{workdir} is in the directory of a sweep, {folder}: choose another "
                "--workdir."
            )
    if sweep and (own / "config.json").exists():
        raise WorkdirError(f"{workdir} holds a run: choose another --workdir.")


def read_config(workdir: Path) -> Any:
    """The config of the run in a directory, in JSON form; raises WorkdirError."""
    path = workdir / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        problem = f"{workdir} holds checkpoints but no config.json"
    except ValueError as error:
        problem = f"{path} is damaged ({error})"
    raise WorkdirError(
        f"{problem}, so what the checkpoints belong to is unknown. Restore it, or choose "
        "another --workdir."
    )


def open_record(
    workdir: Path, record: Any, source: dict[str, Any], begun: int, num_steps: int
) -> None:
    """Write config.json and the header of metrics.jsonl; or go on after step `begun`."""
    replace(workdir / "config.json", json.dumps(record, indent=2) + "\n")
    if begun:
        metrics.rewind(workdir, begun)
        if begun < num_steps:
            metrics.write(workdir, "resumed", {"step": begun, **metrics.environment()})
        return
    replace(metrics.path_of(workdir), "")
    header = {"config": record, "data": source, **metrics.environment()}
    metrics.write(workdir, "header", header)
