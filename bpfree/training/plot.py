"""The learning curve of a run, `learning_curve.png`."""

from pathlib import Path

from bpfree.training.metrics import Record, logs_of, measured


def learning_curve(records: list[Record], path: Path, title: str) -> None:
    """Draw training loss, the first metric, and what an estimator says of its error.

    Args:
      records: as `metrics.read` returns them; needs at least one "log".
      path: the PNG to write.
    """
    from matplotlib.figure import Figure

    logs = logs_of(records)
    steps = [r["step"] for r in logs]
    errors = [
        name
        for name in ("error", "disagreement")
        if any(0 < r.get(name, 0) < float("inf") for r in logs)
    ]
    panels = 3 if errors else 2
    figure = Figure(figsize=(7, 2.75 * panels), layout="constrained")
    upper, lower, *third = figure.subplots(panels, 1, sharex=True)
    marker = "o" if len(logs) < 40 else ""
    losses = [r["train/loss"] for r in logs]
    scale = "linear" if any(loss <= 0 for loss in losses) else "log"
    upper.plot(steps, losses, color="C0", marker=marker, ms=3)
    upper.set(ylabel="training loss", yscale=scale, title=title)
    metric = measured(logs[0])[0].partition("/")[2]
    values = [r[f"validation/{metric}"] for r in logs]
    lower.plot(steps, values, color="C1", marker=marker, ms=3, label="validation")
    lower.set(ylabel=metric.replace("_", " "), xlabel="step")
    for record in [r for r in records if r["kind"] == "summary"][-1:]:
        test = record[f"test/{metric}"]
        lower.axhline(test, color="C2", ls="--", label=f"test, at the end: {test:.4g}")
    lower.legend(loc="lower right", frameon=False)
    for axes in third:
        for name in errors:
            axes.plot(steps, [r[name] for r in logs], marker=marker, ms=3, label=name)
        axes.set(ylabel="relative error", yscale="log", xlabel="step")
        axes.legend(loc="lower right", frameon=False)
    for axes in (upper, lower, *third):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
