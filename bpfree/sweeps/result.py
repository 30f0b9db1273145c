"""What becomes of a point, and the file `result.json` that says so."""

import json
import math
from pathlib import Path
from typing import Any

from bpfree.training.losses import Metric
from bpfree.training.metrics import Record
from bpfree.training.workdir import replace

Result = dict[str, Any]


def done(summary: Record, logs: list[Record], metric: Metric) -> Result:
    """Of a run that came to its end.

    Args:
      summary: its last record, with the metrics of validation and test.
      logs: its log points.
      metric: which says what run is best.
    """
    loss = logs[-1]["train/loss"] if logs else None
    kept = {k: v for k, v in summary.items() if "/" in k or k in ("step", "seconds")}
    chosen = {"metric": metric.name, "lower_is_better": metric.lower}
    return {"status": "done", **chosen, **kept, "loss": loss}


def validation(record: Result) -> float:
    """The metric that says what run is best, of a finished one."""
    return record[f"validation/{record['metric']}"]


def failed(error: str | None) -> Result:
    """Of a point that cannot run, or whose run ended in an error."""
    return {"status": "failed", "error": " ".join(str(error).split())}


def score(record: Result) -> float:
    """Of a finished run, larger for better ones; nan is worst."""
    value = validation(record)
    if math.isnan(value):
        return -math.inf
    return -value if record["lower_is_better"] else value


def write(workdir: Path, result: Result) -> None:
    replace(workdir / "result.json", json.dumps(result) + "\n")


def read(workdir: Path) -> Result | None:
    """None where there is none yet."""
    try:
        return json.loads((workdir / "result.json").read_text())
    except FileNotFoundError:
        return None
