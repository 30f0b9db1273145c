"""The record of a run: `metrics.jsonl`, one JSON object a line.

Each has a "kind": "header" (first line: config, data, versions, device), "log" (a log
point), "resumed" or "summary".
"""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import bpfree
from bpfree.training.workdir import WorkdirError, replace

Record = dict[str, Any]
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
)


def environment() -> Record:
    """Versions and device, for the header."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    return {
        "versions": {
            "bpfree": bpfree.__version__,
            "python": platform.python_version(),
            **versions,
        },
        "device": {"platform": device.platform, "kind": device.device_kind},
    }


def path_of(workdir: Path) -> Path:
    return workdir / "metrics.jsonl"


def write(workdir: Path, kind: str, record: Record) -> None:
    """Append one line."""
    with path_of(workdir).open("a") as file:
        file.write(json.dumps({"kind": kind, **record}) + "\n")


def read(workdir: Path) -> list[Record]:
    """All whole lines; a last one cut off by a crash is left out.

    Raises WorkdirError naming another line that cannot be read.
    """
    if not path_of(workdir).exists():
        return []
    lines = path_of(workdir).read_text(errors="replace").split("\n")[:-1]
    return [_record(workdir, i, line) for i, line in enumerate(lines, 1)]


def speed(steps: float, batch_size: int, num_samples: int) -> Record:
    """Of a log point, from its steps a second; noisy passes only where there are some."""
    found = {"steps_per_second": steps, "examples_per_second": steps * batch_size}
    if num_samples:
        found["perturbations_per_second"] = steps * num_samples
    return found


def logs_of(records: list[Record]) -> list[Record]:
    """The log points among them."""
    return [record for record in records if record["kind"] == "log"]


def _record(workdir: Path, number: int, line: str) -> Record:
    try:
        return json.loads(line)
    except ValueError as error:
        raise WorkdirError(
            f"{path_of(workdir)}, line {number}, is damaged ({error}). Mend or remove "
            "it, or choose another --workdir."
        ) from error


def rewind(workdir: Path, step: int) -> None:
    """Drop what was logged after `step`: the resumed run logs it again."""
    kept = [r for r in read(workdir) if r.get("step", 0) <= step]
    replace(path_of(workdir), "".join(json.dumps(r) + "\n" for r in kept))
