"""What becomes of a point, and the file `result.json` that says so."""

import json
from pathlib import Path
from typing import Any

from bpfree.training.metrics import Record
from bpfree.training.workdir import replace

Result = dict[str, Any]


def done(summary: Record, logs: list[Record]) -> Result:
    """Of a run that came to its end.

    Args:
      summary: its last record; accuracies 0 .. 1.
      logs: its log points.
    """
    loss = logs[-1]["train/loss"] if logs else None
    kept = ("step", "validation_accuracy", "test_accuracy", "seconds")
    return {"status": "done", **{k: summary[k] for k in kept}, "loss": loss}


def failed(error: str | None) -> Result:
    return {"status": "failed", "error": " ".join(str(error).split())}


def write(workdir: Path, result: Result) -> None:
    replace(workdir / "result.json", json.dumps(result) + "\n")


def read(workdir: Path) -> Result | None:
    """None where there is none yet."""
    try:
        return json.loads((workdir / "result.json").read_text())
    except FileNotFoundError:
        return None
