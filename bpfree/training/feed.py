"""Where the batches of a run come from: rows of arrays on the device, or Grain.

Either way a batch depends on (seed, step) only, so a resumed run repeats the undisturbed
one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.data import Batch
from bpfree.training import mesh, steps
from bpfree.training.names import imported
from bpfree.training.steps import Task, TrainState

Advance = Callable[[Any, TrainState, int], tuple[TrainState, jax.Array]]
_PIECE = 8  # steps whose batches are sent to the device at once


class Feed(NamedTuple):
    """A run's supply of batches.

    Attributes:
      lower: `(length, state) -> (program, advance)`: a program to be compiled, and a
        function of it, compiled, of states like this one and of a count. That does so
        many steps, `length` at most, returns the sum of their losses, too, and takes the
        state's buffers.
      position: () -> what a checkpoint must hold to go on from here (JSON).
      seek: takes the feed to such a position.
    """

    lower: Callable[[int, TrainState], tuple[jax.stages.Lowered, Advance]]
    position: Callable[[], Any]
    seek: Callable[[Any], None]


def on_device(task: Task, train: Batch) -> Feed:
    """Batches are gathered on the device; their order is made there, too."""

    def lower(length, state):
        def run(state, train, count):
            return steps.advance(task, length, state, train, count)

        program = steps.lowered(run, state, train, np.int32(0))
        return program, lambda run, state, count: run(state, train, np.int32(count))

    return Feed(lower, lambda: None, lambda position: None)


def from_grain(task: Task, examples: Any, batch: Batch) -> Feed:
    """Examples are read one by one, shuffled afresh in every epoch, by Grain.

    Args:
      examples: a sequence of {"x": ..., "label": ...}.
      batch: one, for its shapes.

    Some steps' batches are sent at once, and the next are read while the device works.
    An epoch's last batch is filled up from the next epoch.

    Raises ConfigError: Grain is not installed.
    """
    grain: Any = imported("grain", "config.data.loader='grain'", "Grain", "grain")
    seed = int(jax.random.bits(task.keys.order, dtype=jnp.uint32)) >> 1
    columns = mesh.columns(task.mesh, task.batch_size)

    def read(rows):
        """This process's columns of one batch."""
        return jax.tree.map(lambda *a: np.stack(a), *(examples[i] for i in rows[columns]))

    ordered = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
    batches = iter(ordered.batch(task.batch_size).map(read).to_iter_dataset())

    def take(count):
        """The next batches, and zeros after them: (_PIECE, B, ...)."""
        taken = [next(batches) for _ in range(count)]
        rest = _PIECE - count

        def stacked(*arrays):
            rim = [(0, rest), *[(0, 0)] * arrays[0].ndim]
            return np.pad(np.stack(arrays), rim)

        mine = jax.tree.map(stacked, *taken)
        return mesh.assemble(task.mesh, task.batch_size, mine)

    def several(state, count, taken):
        def batch_of(i):
            return jax.tree.map(lambda a: a[i], taken)

        return steps.count_steps(task, state, count, batch_of)

    def advance(run, state, count):
        total: Any = 0.0
        for begun in range(0, count, _PIECE):
            now = min(_PIECE, count - begun)
            state, some = run(state, np.int32(now), take(now))
            total = total + some
        return state, total

    def lower(length, state):
        shapes = mesh.shapes_of_batches(task.mesh, _PIECE, batch)
        return steps.lowered(several, state, np.int32(0), shapes), advance

    return Feed(lower, batches.get_state, batches.set_state)
