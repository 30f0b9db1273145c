"""The loop of a run: block after block of steps, each looked at, reported and saved."""

import contextlib
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import jax

import bpfree
from bpfree.training import config, interrupt, steps
from bpfree.training.feed import Advance
from bpfree.training.jsonlines import Record
from bpfree.training.metrics import of_part
from bpfree.training.steps import TrainState


class Block(NamedTuple):
    """What a block came to.

    Attributes:
      step: updates done at its end, those of earlier blocks included.
      length: its own updates.
      seen: what `steps.look` gives, on the host.
      seconds: its duration, that of looking included.
      stop: whether a signal ended it.
    """

    step: int
    length: int
    seen: steps.Metrics
    seconds: float
    stop: bool = False

    def log(self, batch_size: int, num_samples: int) -> Record:
        """Its log point; noisy passes are counted only where there are some."""
        speed = self.length / self.seconds
        record = {
            "step": self.step,
            "train/loss": float(self.seen.loss),
            **of_part("validation", self.seen.validation),
            "seconds": self.seconds,
            "steps_per_second": speed,
            "examples_per_second": speed * batch_size,
        }
        if num_samples:
            record["perturbations_per_second"] = speed * num_samples
        return record | {name: float(v) for name, v in self.seen.estimator.items()}


def run(
    settings: config.Settings,
    state: TrainState,
    last: int,
    *,
    lower: Callable[[], tuple[jax.stages.Lowered, Advance]],
    look: Callable[[TrainState, Any, int], steps.Metrics],
    report: Callable[[TrainState, Block], Any],
    save: Callable[[TrainState], None],
    around: Callable[[int, bool], AbstractContextManager] = (
        lambda count, is_last: contextlib.nullcontext()
    ),
    agree: Callable[[int, bool], tuple[int, bool]] = lambda pace, stop: (pace, stop),
) -> TrainState:
    """Train up to the first log point with at least `last` updates; the new state.

    Takes the state's buffers over.

    Args:
      lower: () -> what `Feed.lower` returns, for a block.
      look: (state, sum of losses, steps) -> what a log point has; it is called once
        before the first block, so that it is compiled then.
      report: (state, block) -> whether there is nothing left to train.
      save: writes a checkpoint: every `settings.checkpoint_every` steps, and at the end.
      around: (number of the block, whether it is the last) -> a context for it.
      agree: what all processes of a run do, from the pace and stop of this one.

    Raises Interrupted after a signal, with the state saved; what the functions raise.
    """
    done, pace, count = int(state.step), 1, 0
    if done >= last:
        return state
    with interrupt.noted("the run") as came:
        program, call = lower()
        advance = partial(call, interrupt.wait_for(program.compile, given_up=came))
        look(state, bpfree.value(state.opt_state), 1)
        while done < last:
            length = settings.log_every - done % settings.log_every
            length = min(length, settings.num_steps - done)
            with around(count, done + length >= last):
                start = time.perf_counter()
                state, losses, length, pace, stop = interrupt.pieces(
                    advance, state, length, pace, came, agree
                )
                seen = jax.device_get(look(state, losses, length))
                seconds = time.perf_counter() - start
            done, count = done + length, count + 1
            over = report(state, Block(done, length, seen, seconds, stop))
            pace, stop = agree(pace, stop or bool(came))
            if due(done, length, settings.checkpoint_every) or done >= last or stop:
                save(state)
            if over:
                break
            if stop and done < last:
                signum = came[0] if came else signal.SIGTERM
                raise interrupt.Interrupted(signum, f"stopped and saved at step {done}")
    return state


def due(done: int, length: int, every: int) -> bool:
    """Whether the last `length` steps crossed a multiple of `every`."""
    return done // every > (done - length) // every
