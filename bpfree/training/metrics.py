"""The record of a run: `metrics.jsonl`, one JSON object a line.

Each has a "kind": "header" (first line: config, data, versions, device), "log" (a log
point), "resumed" or "summary".
"""

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import bpfree
from bpfree.training import jsonlines
from bpfree.training.jsonlines import Record

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
    versions = {"bpfree": bpfree.__version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    device = jax.devices()[0]
    kind = {"platform": device.platform, "kind": device.device_kind}
    return {"versions": versions, "device": kind}


def path_of(workdir: Path) -> Path:
    return workdir / "metrics.jsonl"


def write(workdir: Path, kind: str, record: Record) -> None:
    """Append one line."""
    jsonlines.append(path_of(workdir), {"kind": kind, **record})


def read(workdir: Path) -> list[Record]:
    """All whole lines; a last one cut off by a crash is left out.

    Raises WorkdirError naming another line that cannot be read.
    """
    advice = "Mend or remove it, or choose another --workdir."
    return jsonlines.read(path_of(workdir), advice)


def rewind(workdir: Path, step: int) -> None:
    """Drop what was logged after `step`: the resumed run logs it again."""
    kept = [r for r in read(workdir) if r.get("step", 0) <= step]
    jsonlines.write(path_of(workdir), kept)


def of_part(part: str, values: Mapping[str, Any]) -> Record:
    """The metrics of a part of the data, as a record has them: {"part/metric": ...}."""
    return {f"{part}/{name}": float(value) for name, value in values.items()}


def measured(record: Record) -> list[str]:
    """The keys of a record's metrics on validation; the first says which run is best."""
    return [key for key in record if key.startswith("validation/")]


def in_words(log: Record) -> str:
    """A log point in a line, for the progress bar."""
    words = [
        f"train loss {log['train/loss']:.4f}",
        *(f"{key.replace('/', ' ')} {log[key]:.4f}" for key in measured(log)),
        f"{log['examples_per_second']:.0f} examples/s",
    ]
    if "perturbations_per_second" in log:
        words.append(f"{log['perturbations_per_second']:.0f} perturbations/s")
    return ", ".join(words)


def logs_of(records: list[Record]) -> list[Record]:
    """The log points among them."""
    return [record for record in records if record["kind"] == "log"]


def read_logs(workdir: Path) -> list[Record]:
    """The log points of the run in a directory; raises what `read` raises."""
    return logs_of(read(workdir))


def summarize(
    workdir: Path, step: int, test: Mapping[str, Any], validation: Mapping[str, Any]
) -> Record:
    """The summary of a run at its end, with its metrics, written unless it is there."""
    records = read(workdir)
    summary = {
        "step": step,
        **of_part("test", test),
        **of_part("validation", validation),
        "seconds": sum(r["seconds"] for r in logs_of(records)),
    }
    if records[-1]["kind"] != "summary":
        write(workdir, "summary", summary)
    return summary
