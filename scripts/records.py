"""Result files `results/*.json`: what a script measured, and how.

    {"command": ..., "seeds": [...], "versions": {...}, "device": {...}, "rows": {...}}

`scripts/tables.py` writes the tables of the documentation from them.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bpfree.training import metrics

FOLDER = Path(__file__).parent.parent / "results"
_UNSAID = ("--results", "--figure", "--folder", "--collect", "--programs", "--tried")


def write(path: str, seeds: list[int], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """The rows of a table, with the command that made them; floats to five digits."""
    short = {
        name: {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in r.items()}
        for name, r in rows.items()
    }
    record = {"command": command(), "seeds": seeds, **metrics.environment()}
    text = json.dumps({**record, "rows": short}, indent=1)
    Path(path).write_text(text + "\n")


def spread(name: str, values: Any) -> dict[str, float]:
    """Mean and standard deviation over the seeds, as `name` and `name_std`.

    One seed has a mean only.
    """
    found = {name: float(np.mean(values))}
    if len(values) > 1:
        found[f"{name}_std"] = float(np.std(values, ddof=1))
    return found


def gap(value: float, control: float, twin: float) -> float:
    """The share of the way from the control's value to the twin's.

    The twin is the same net trained by backprop, and the control is what the method must
    beat: the last layer trained alone, or the net before any training.
    """
    return (value - control) / (twin - control)


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def command() -> str:
    """As it was typed, without flags of places and the choice of rows."""
    script, *flags = sys.argv
    kept = [flag for flag in flags if not flag.startswith(_UNSAID)]
    return f"python scripts/{Path(script).name} {shlex.join(kept)}".strip()
