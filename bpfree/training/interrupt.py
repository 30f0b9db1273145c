"""Ctrl-C and SIGTERM wait for the end of the block, so that a run can save itself."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(RuntimeError):
    """A signal asked the run to stop; its state is saved.

    Attributes:
      signum: the signal, for the exit status 128 + signum.
    """

    def __init__(self, signum: int, step: int) -> None:
        self.signum = signum
        super().__init__(
            f"{signal.Signals(signum).name}: stopped and saved at step {step}; the same "
            "command goes on from there"
        )


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """A list that gets the number of a signal that came; a second one acts at once.

    Python takes signals in its main thread only; elsewhere the list stays empty.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def note(signum, frame) -> None:
        came.append(signum)
        restore()

    for signum in before:
        signal.signal(signum, note)
    try:
        yield came
    finally:
        restore()
