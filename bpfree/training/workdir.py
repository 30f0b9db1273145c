"""A run's directory: claimed by one process at a time, and its faults in one line."""

import contextlib
import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class WorkdirError(RuntimeError):
    """The working directory cannot be used as it is; says why and what to do.

    Example:
        >>> from bpfree import training
        >>> try:
        ...     training.load("runs/never_made")
        ... except training.WorkdirError as error:
        ...     print(error)
        runs/never_made holds no run with checkpoints
    """


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """The directory, made if need be, for this process alone.

    The claim is a lock on the file `lock`, which the system drops when the process ends,
    however it ends; the file itself stays, and means nothing without the lock.

    Raises WorkdirError: another process has it (with its number); the directory
    cannot be written; or whatever of its files could not be written inside the block.
    """
    with workdir_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        with (workdir / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise WorkdirError(
                    f"{workdir} is in use by {owner}. Wait for it or stop it, or choose "
                    "another --workdir."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield


def can_write(workdir: Path) -> bool:
    """False where the directory is there, and lies on read-only media or is closed."""
    return not workdir.exists() or os.access(workdir, os.W_OK)


@contextlib.contextmanager
def workdir_errors(workdir: Path) -> Iterator[None]:
    """Turns an OSError of the block into a WorkdirError with advice."""
    try:
        yield
    except OSError as error:
        raise WorkdirError(f"{workdir}: {error}. {advice(error)}") from error


def advice(error: BaseException) -> str:
    """What to do about an error that came while the directory was written."""
    number = getattr(error, "errno", None)
    if number in _FULL or os.strerror(errno.ENOSPC) in str(error):
        return "Free some space; the same command goes on from the last checkpoint."
    if number in _CLOSED:
        return "Make it writable, or choose another --workdir."
    return "Put that right, or choose another --workdir."


def replace(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it sees the old or the new."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)
