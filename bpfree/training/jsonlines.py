"""Files of JSON lines: one object a line, each appended in one write.

A line that a crash cut short is not there for readers, and is cut off before the next is
written.
"""

import json
import os
from pathlib import Path
from typing import Any

from bpfree.training.workdir import WorkdirError, replace

Record = dict[str, Any]


def append(path: Path, record: Record, sync: bool = False) -> None:
    """One line; with `sync` it is on the disk when this returns."""
    line = (json.dumps(record) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            size = os.pread(file, size, 0).rfind(b"\n") + 1
            os.ftruncate(file, size)
        if os.pwrite(file, line, size) != len(line):
            raise OSError(f"{path} could not be written")
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def read(path: Path, advice: str) -> list[Record]:
    """The whole lines, none if there is no file.

    Raises WorkdirError naming a line that cannot be read; it ends with the advice.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise WorkdirError(
                f"{path}, line {number}, is damaged ({error}). {advice}"
            ) from error
    return records


def write(path: Path, records: list[Record]) -> None:
    """The whole file, in one piece."""
    replace(path, "".join(json.dumps(record) + "\n" for record in records))
