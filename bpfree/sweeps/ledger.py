"""What is finished: one JSON object a line, appended in one write and kept by the disk.

A line that a crash cut short is not there for readers, and is cut off before the next is
written. Only the process that holds the sweep's directory writes.
"""

import json
import os
from pathlib import Path
from typing import Any

from bpfree.training.workdir import WorkdirError

Record = dict[str, Any]


def path_of(workdir: Path) -> Path:
    return workdir / "ledger.jsonl"


def append(workdir: Path, record: Record) -> None:
    """One line, on the disk when this returns."""
    line = (json.dumps(record) + "\n").encode()
    file = os.open(path_of(workdir), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = _whole(file)
        os.ftruncate(file, end)
        if os.pwrite(file, line, end) != len(line):
            raise OSError(f"{path_of(workdir)} could not be written")
        os.fsync(file)
    finally:
        os.close(file)


def _whole(file: int) -> int:
    """Bytes up to the end of the last whole line."""
    size = os.fstat(file).st_size
    return os.pread(file, size, 0).rfind(b"\n") + 1


def read(workdir: Path) -> dict[str, Record]:
    """{name: its last record}, in the order of first appearance.

    Raises WorkdirError naming a line that cannot be read.
    """
    try:
        text = path_of(workdir).read_text(errors="replace")
    except FileNotFoundError:
        return {}
    found: dict[str, Record] = {}
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            record = json.loads(line)
            found[record["name"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise WorkdirError(
                f"{path_of(workdir)}, line {number}, is damaged ({error}). Remove it: "
                "its point is run again."
            ) from error
    return found
