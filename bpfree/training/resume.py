"""Whether the run in a working directory is this one, and its record opened."""

import json
from pathlib import Path
from typing import Any

from bpfree.training import config, metrics
from bpfree.training.names import ConfigError
from bpfree.training.workdir import WorkdirError, replace


def check(workdir: Path, record: Any, source: dict[str, Any]) -> None:
    """Refuse to go on with another config or other data than the run began with.

    Args:
      record: the config as `config.as_json` gives it.
      source: of the data set, wherever it lies now.

    Raises ConfigError naming what differs; WorkdirError if the run's record is damaged.
    """
    changed = config.differences(_config(workdir), record)
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another config; these differ: "
            f"{', '.join(sorted(changed))}. Choose another --workdir, or restore "
            f"the values in {workdir / 'config.json'}."
        )
    begun = next(
        (r["data"] for r in metrics.read(workdir) if r["kind"] == "header"), None
    )
    if begun is None:
        raise WorkdirError(
            f"{metrics.path_of(workdir)} has lost its header, so which data the run is "
            "on is unknown. Restore it, or choose another --workdir."
        )
    changed = config.differences({**begun, "from": ""}, {**source, "from": ""}, "data")
    if changed:
        raise ConfigError(
            f"{workdir} holds a run on other data; these differ: {', '.join(changed)}. "
            f"Choose another --workdir, or restore the data: {begun}."
        )


def _config(workdir: Path) -> Any:
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
    if begun:
        metrics.rewind(workdir, begun)
        if begun < num_steps:
            metrics.write(workdir, "resumed", {"step": begun, **metrics.environment()})
        return
    replace(workdir / "config.json", json.dumps(record, indent=2) + "\n")
    replace(metrics.path_of(workdir), "")
    header = {"config": record, "data": source, **metrics.environment()}
    metrics.write(workdir, "header", header)
