"""What is finished, in `ledger.jsonl`: a record for each point.

Only the process that holds the sweep's directory writes.
"""

from pathlib import Path

from bpfree.training import jsonlines
from bpfree.training.jsonlines import Record


def path_of(workdir: Path) -> Path:
    return workdir / "ledger.jsonl"


def append(workdir: Path, record: Record) -> None:
    """One line, on the disk when this returns."""
    jsonlines.append(path_of(workdir), record, sync=True)


def read(workdir: Path) -> dict[str, Record]:
    """{name: its last record}, in the order of first appearance.

    Raises WorkdirError naming a line that cannot be read.
    """
    advice = "Remove it: its point is run again."
    return {r["name"]: r for r in jsonlines.read(path_of(workdir), advice)}
