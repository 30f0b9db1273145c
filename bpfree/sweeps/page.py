"""The report of a sweep as one HTML file, needing no other: table, curves, command."""

import html
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from bpfree.training.metrics import Record

CURVES = 10
"""Settings with curves: the best ones."""

_STYLE = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


class Curves(NamedTuple):
    """Log points of runs: {key of the panel's values: label of its axis}, and the runs
    of each setting, the best setting first."""

    panels: Mapping[str, str]
    settings: Sequence[Sequence[Sequence[Record]]]


def page(
    title: str,
    rows: Sequence[Sequence[str]],
    curves: Curves,
    failures: Sequence[str],
    command: str | None,
) -> str:
    """The page.

    Args:
      rows: of the table, the head first, then the best setting.
      failures: a line each.
      command: that trains the best point again; None if nothing is finished.
    """
    drawn = len(curves.settings[:CURVES])
    best = f"<pre>{html.escape(command)}</pre>" if command else "<p>No point is finished."
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="wide">{_table(rows, drawn)}</div>',
        f"<h2>The best point again</h2>{best}",
    ]
    if drawn:
        panels = (_svg(key, name, curves.settings) for key, name in curves.panels.items())
        parts.append(f'<h2>Curves</h2><div class="curves">{"".join(panels)}</div>')
    if failures:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in failures)
        parts.append(f"<h2>Failed</h2><ul>{items}</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(rows: Sequence[Sequence[str]], drawn: int) -> str:
    """The table, with the colours of the curves before the settings that have some."""
    head, *rest = (
        [html.escape(cell).replace("+-", "&plusmn;") for cell in row] for row in rows
    )
    for i, row in enumerate(rest[:drawn]):
        row[0] = f'<i style="background: {_colour(i)}"></i>{row[0]}'
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rest]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _colour(i: int) -> str:
    from matplotlib import colors

    return colors.to_hex(f"C{i}")


def _svg(key: str, label: str, settings: Sequence[Sequence[Sequence[Record]]]) -> str:
    """A panel: the values against the step, the best setting in front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, runs in reversed(list(enumerate(settings[:CURVES]))):
        for logs in runs:
            steps, values = [r["step"] for r in logs], [r[key] for r in logs]
            marker = "o" if len(logs) < 20 else ""
            axes.plot(steps, values, color=_colour(i), lw=1.2, marker=marker, ms=3)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
