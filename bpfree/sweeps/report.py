"""What a sweep came to: a table, a figure, and the best config as a command.

Points that differ only in the seed are rows of one line: mean and standard deviation.
Validation accuracy chooses; test accuracy is only shown.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpfree.sweeps import ledger, worker
from bpfree.training import metrics


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
        """Sample standard deviation; nan for one."""
        values, centre = [r[key] for r in self.records], self.mean(key)
        if len(values) < 2:
            return math.nan
        return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def lines(records: Mapping[str, ledger.Record]) -> list[Line]:
    """One for each setting, the best mean validation accuracy first."""
    found: dict[str, Line] = {}
    for record in records.values():
        if record["status"] == "pruned":
            continue
        settings = {k: v for k, v in record["overrides"].items() if k != "seed"}
        key = json.dumps(settings, sort_keys=True)
        line = found.setdefault(key, Line(settings, [], []))
        (line.records if record["status"] == "done" else line.failures).append(record)
    rank = lambda line: line.mean("validation_accuracy")  # noqa: E731
    with_results = sorted((x for x in found.values() if x.records), key=rank)
    return with_results[::-1] + [x for x in found.values() if not x.records]


def table(found: Sequence[Line]) -> str:
    """Markdown: settings, runs, accuracies in percent, loss, seconds a run."""
    head = ["setting", "runs", "validation %", "test %", "loss", "seconds", "failed"]
    rows = [head, ["---"] * len(head)]
    for line in found:
        accuracies = [_percent(line, k) for k in ("validation_accuracy", "test_accuracy")]
        numbers = [f"{line.mean('loss'):.4f}", f"{line.mean('seconds'):.1f}"]
        if not line.records:
            accuracies, numbers = ["", ""], ["", ""]
        runs = str(len(line.records))
        failures = str(len(line.failures) or "")
        rows.append([_words(line.overrides), runs, *accuracies, *numbers, failures])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _percent(line: Line, key: str) -> str:
    mean, deviation = 100 * line.mean(key), 100 * line.deviation(key)
    return f"{mean:.2f}" + ("" if math.isnan(deviation) else f" +- {deviation:.2f}")


def _words(overrides: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in overrides.items()) or "as it is"


def failures(found: Sequence[Line]) -> str:
    """One line for each failed point."""
    return "\n".join(
        f"failed: {_words(record['overrides'])}: {record['error']}"
        for line in found
        for record in line.failures
    )


def best_command(found: Sequence[Line], workdir: Path) -> str | None:
    """The command that trains the best point again; None if nothing is finished."""
    if not found or not found[0].records:
        return None
    best = max(found[0].records, key=lambda r: r["validation_accuracy"])
    config = worker.folder_of(workdir, best["name"]) / "config.json"
    again = workdir.with_name(f"{workdir.name}-best")
    command = ["bpfree-train", f"--config={config}", f"--workdir={again}"]
    return " ".join(map(shlex.quote, command))


def figure(workdir: Path, found: Sequence[Line], path: Path) -> None:
    """Validation accuracy against the step, one colour for each of the ten best."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    for i, line in enumerate(x for x in found[:10] if x.records):
        for j, record in enumerate(line.records):
            folder = worker.folder_of(workdir, record["name"])
            logs = metrics.logs_of(metrics.read(folder))
            xs, ys = (
                [r["step"] for r in logs],
                [100 * r["validation/accuracy"] for r in logs],
            )
            label = None if j else _words(line.overrides)
            axes.plot(xs, ys, color=f"C{i}", lw=1, alpha=0.8, label=label)
    axes.set(xlabel="step", ylabel="validation accuracy (%)", title=workdir.name)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right", frameon=False, fontsize="small")
    canvas.savefig(path, dpi=120)


def text(workdir: Path) -> str:
    """The report; draws `sweep.png`, too."""
    found = lines(ledger.read(workdir))
    figure(workdir, found, workdir / "sweep.png")
    pruned = sum(r["status"] == "pruned" for r in ledger.read(workdir).values())
    command = best_command(found, workdir)
    parts = [
        table(found),
        failures(found),
        f"pruned: {pruned}" if pruned else "",
        f"best: {command}" if command else "no point is finished",
        f"figure: {workdir / 'sweep.png'}",
    ]
    return "\n\n".join(part for part in parts if part)
