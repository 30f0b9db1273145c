"""The learning curve of a run, `learning_curve.png`."""

from pathlib import Path

from bpfree.training.metrics import Record


def learning_curve(records: list[Record], path: Path, title: str) -> None:
    """Draw training loss and validation accuracy against the step.

    Args:
      records: as `metrics.read` returns them; needs at least one "log".
      path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logs = [r for r in records if r["kind"] == "log"]
    steps = [r["step"] for r in logs]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    marker = "o" if len(logs) < 40 else ""
    upper.plot(steps, [r["loss"] for r in logs], color="C0", marker=marker, ms=3)
    upper.set(ylabel="training loss", yscale="log", title=title)
    errors = [100 * r["accuracy"] for r in logs]
    lower.plot(steps, errors, color="C1", marker=marker, ms=3, label="validation")
    lower.set(ylabel="accuracy (%)", xlabel="step")
    for record in records:
        if record["kind"] == "summary":
            test = 100 * record["test_accuracy"]
            lower.axhline(
                test, color="C2", ls="--", label=f"test, at the end: {test:.2f}"
            )
    lower.legend(loc="lower right", frameon=False)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
