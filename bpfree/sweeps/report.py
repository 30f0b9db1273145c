"""What a sweep came to: a table, the best config as a command, and a page.

Points that differ only in the seed are rows of one line: mean and standard deviation.
The first metric on validation chooses; that on test is only shown.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpfree.sweeps import ledger, page, worker
from bpfree.sweeps.result import score
from bpfree.training import metrics
from bpfree.training.workdir import WorkdirError, can_write, replace


class Line(NamedTuple):
    """Points that differ only in the seed.

    Attributes:
      overrides: without the seed.
      records: of finished points.
      failures: records of failed ones.
    """

    overrides: dict[str, Any]
    records: list[ledger.Record]
    failures: list[ledger.Record]

    def mean(self, key: str) -> float:
        values = [r[key] for r in self.records]
        return sum(values) / len(values) if values else math.nan

    def deviation(self, key: str) -> float:
        """Sample standard deviation; nan for one, and where a value is not finite."""
        values = [r[key] for r in self.records]
        with np.errstate(invalid="ignore"):
            return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def lines(records: Mapping[str, ledger.Record]) -> list[Line]:
    """One for each setting, the best mean metric on validation first."""
    found: dict[str, Line] = {}
    for record in records.values():
        if record["status"] == "pruned":
            continue
        settings = {k: v for k, v in record["overrides"].items() if k != "seed"}
        key = json.dumps(settings, sort_keys=True)
        line = found.setdefault(key, Line(settings, [], []))
        (line.records if record["status"] == "done" else line.failures).append(record)
    finished = [line for line in found.values() if line.records]
    metric_of(finished)  # they can be compared
    rank = lambda line: -sum(map(score, line.records)) / len(line.records)  # noqa: E731
    return sorted(finished, key=rank) + [x for x in found.values() if not x.records]


def metric_of(found: Sequence[Line]) -> str:
    """The metric that chooses; WorkdirError if the points have different ones."""
    records = [record for line in found for record in line.records]
    names = {record["metric"] for record in records}
    if len(names) > 1:
        all_ = ", ".join(sorted(names))
        raise WorkdirError(f"the points have different metrics, {all_}: none is best")
    return names.pop() if names else "accuracy"


def table(found: Sequence[Line]) -> list[list[str]]:
    """Rows, a head first: settings, runs, metric, loss, seconds a run."""
    metric = metric_of(found)
    keys = (f"validation/{metric}", f"test/{metric}")
    rows = [["setting", "runs", *map(_name, keys), "loss", "seconds", "failed"]]
    for line in found:
        numbers = [_spread(line, key) for key in keys]
        numbers += [f"{line.mean('loss'):.4f}", f"{line.mean('seconds'):.1f}"]
        counts = str(len(line.records)), str(len(line.failures) or "")
        numbers = numbers if line.records else [""] * len(numbers)
        rows.append([_words(line.overrides), counts[0], *numbers, counts[1]])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    rows = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _spread(line: Line, key: str) -> str:
    mean, deviation = line.mean(key), line.deviation(key)
    return f"{mean:.4g}" + ("" if math.isnan(deviation) else f" +- {deviation:.2g}")


def _name(key: str) -> str:
    return key.replace("/", " ").replace("_", " ")


def _words(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in overrides.items()) or "as it is"


def failures(found: Sequence[Line]) -> list[str]:
    """One line for each failed point."""
    failed = [record for line in found for record in line.failures]
    return [f"{_words(record['overrides'])}: {record['error']}" for record in failed]


def curves(found: Sequence[Line], workdir: Path) -> page.Curves:
    """The log points of the best settings, with the metric and the training loss."""
    key = f"validation/{metric_of(found)}"
    panels = {key: _name(key), "train/loss": "training loss"}
    folder = lambda record: worker.folder_of(workdir, record["name"])  # noqa: E731
    runs = (
        [metrics.read_logs(folder(record)) for record in line.records]
        for line in found[: page.CURVES]
        if line.records
    )
    return page.Curves(panels, list(runs))


def best_command(found: Sequence[Line], workdir: Path) -> str | None:
    """The command that trains the best point again; None if nothing is finished."""
    if not found or not found[0].records:
        return None
    workdir, best = workdir.absolute(), max(found[0].records, key=score)
    config = worker.folder_of(workdir, best["name"]) / "config.json"
    again = workdir.with_name(f"{workdir.name}-best")
    command = ["bpfree-train", f"--config={config}", f"--workdir={again}"]
    return " ".join(map(shlex.quote, command))


def text(workdir: Path) -> str:
    """The report; writes the page `report.html`, too, where the directory allows it."""
    records = ledger.read(workdir)
    found, path = lines(records), workdir / "report.html"
    pruned = sum(r["status"] == "pruned" for r in records.values())
    command = best_command(found, workdir)
    parts = [
        markdown(table(found)),
        "\n".join(f"failed: {line}" for line in failures(found)),
        f"pruned: {pruned}" if pruned else "",
        f"best: {command}" if command else "no point is finished",
    ]
    if can_write(workdir):
        seen = table(found), curves(found, workdir), failures(found), command
        replace(path, page.page(workdir.name, *seen))
        parts.append(f"page: {path}")
    return "\n\n".join(part for part in parts if part)
