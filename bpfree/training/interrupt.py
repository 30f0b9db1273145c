"""Ctrl-C and SIGTERM: what will happen is said at once, and nothing is lost.

Python runs a signal's handler only when its main thread is between two of its own
instructions, not while that thread compiles or waits for a device. So these are done in
another thread (`wait_for`), and blocks of steps in pieces of some seconds (`pieces`).
"""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAYS = (
    "stops after the step under way, and saves its state",
    "is stopping already, and saves its state; a third signal ends it at once",
    "ends at once; the same command goes on from its last checkpoint",
)
SECONDS = 4.0
"""How long a piece of a block may last, about."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop; its state is saved.

    Attributes:
      signum: the signal, for the exit status 128 + signum.
    """

    def __init__(self, signum: int, what: str) -> None:
        self.signum = signum
        super().__init__(
            f"{signal.Signals(signum).name}: {what}; the same command goes on from there"
        )


@contextlib.contextmanager
def noted(what: str) -> Iterator[list[int]]:
    """A list that gets the number of every signal that came; a line says what it does.

    The third ends the process at once, in case that a single step takes too long.

    Args:
      what: that stops then, such as "the run".

    Python takes signals in its main thread only; elsewhere the list stays empty.
    """
    came: list[int] = []

    def note(signum, frame) -> None:
        came.append(signum)
        says = _SAYS[min(len(came), len(_SAYS)) - 1]
        text = f"\n{signal.Signals(signum).name}: {what} {says}\n"
        os.write(2, text.encode())  # print may be under way already
        if len(came) == len(_SAYS):
            os._exit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = [signal.signal(s, note) for s in _SIGNALS]
    try:
        yield came
    finally:
        for signum, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(signum, handler)


def wait_for(function: Callable[..., Any], *args: Any, given_up: Any = ()) -> Any:
    """`function(*args)`, run in another thread so that signals are taken meanwhile.

    Args:
      given_up: what `noted` yields: then a signal ends the waiting. The thread goes on
        with what it does, and its result is dropped.

    Raises what the function raises; Interrupted if it was given up.
    """
    done: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((function(*args), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        with contextlib.suppress(queue.Empty):
            result, error = done.get(timeout=0.1)
            if error is not None:
                raise error
            return result
        if given_up:
            raise Interrupted(given_up[0], "stopped before the first step")


def pieces(
    advance: Callable[[Any, int], tuple[Any, Any]],
    state: Any,
    length: int,
    pace: int,
    came: Sequence[int],
    agree: Callable[[int, bool], tuple[int, bool]] = lambda pace, stop: (pace, stop),
) -> tuple[Any, Any, int, int, bool]:
    """Up to `length` steps, fewer if a signal came.

    Args:
      advance: (state, count) -> (state, sum of the losses of `count` steps).
      pace: steps of the first piece; afterwards as many as last about `SECONDS`.
      came: what `noted` yields.
      agree: what all processes of a run do, from what this one would.

    Returns: (state, sum of the losses, steps done, pace for the next block, whether a
      signal came).
    """

    def waited(state, count):
        state, losses = advance(state, count)
        return state, losses.block_until_ready()

    done, total, stop = 0, 0.0, False
    while done < length and not stop:
        count = min(length - done, pace)
        start = time.perf_counter()
        state, losses = wait_for(waited, state, count)
        seconds = time.perf_counter() - start
        done, total = done + count, total + losses
        pace = max(1, min(length, int(count * SECONDS / seconds)))
        pace, stop = agree(pace, bool(came))
    return state, total, done, pace, stop
