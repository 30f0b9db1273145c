"""The command bpfree-eval: a run's newest checkpoint, evaluated in one line of JSON.

Predictions, confusion matrix and a picture go to files, see `predictions.py`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from bpfree.training import command_line, predictions, resume
from bpfree.training.cache import keep_compiled
from bpfree.training.trained import Trained, load, scores
from bpfree.training.workdir import can_write, workdir_errors

_PART = flags.DEFINE_enum(
    "part", "validation", ["validation", "test"], "Of the data: validation or test."
)
_OUTPUT: flags.FlagHolder[Any] = flags.DEFINE_string(
    "output", None, "Where predictions and picture go; default: workdir/evaluation/part."
)
_HELP = """Evaluate a run's newest checkpoint: a line of JSON, predictions, a picture.

    bpfree-eval --workdir=runs/digits
    bpfree-eval --workdir=runs/digits --part=test
"""


def main(words: list[str]) -> None:
    keep_compiled()
    workdir, part = Path(command_line.WORKDIR.value), _PART.value
    trained = load(workdir)
    if changed := resume.other_data(workdir, trained.job.data.source):
        _say(f"these are not the run's own data; they differ in {', '.join(changed)}")
    found = scores(trained, part)
    folder = _OUTPUT.value or (can_write(workdir) and workdir / "evaluation" / part)
    if folder:
        found["files"] = _write(Path(folder), trained, part, found)
    else:
        _say(f"{workdir} cannot be written; --output=FOLDER keeps the predictions")
    print(json.dumps({"workdir": str(workdir), **found}))


def _write(folder: Path, trained: Trained, part: str, found: dict[str, Any]) -> list[str]:
    batch = getattr(trained.job.data, part)
    outputs = jax.jit(trained.model.apply)(trained.variables, batch["x"])
    outputs, label = np.asarray(outputs), np.asarray(batch["label"])
    values = (f"{k} {v:.4g}" for k, v in found.items() if "/" in k)
    title = ", ".join(values).replace("/", " ").replace("_", " ")
    try:
        with workdir_errors(folder):
            return predictions.write(folder, outputs, label, title)
    except ValueError as error:
        _say(f"no predictions: {error}")
        return []


def _say(line: str) -> None:
    print(f"bpfree-eval: {line}", file=sys.stderr)


def run() -> None:
    """The console script `bpfree-eval`."""
    jax.config.config_with_absl()
    command_line.run("bpfree-eval", main, _HELP, __name__, takes_config=False)


if __name__ == "__main__":
    run()
