"""Where the batches of a run come from: rows of arrays on the device, or Grain.

Either way a batch depends on (seed, step) only, so a resumed run repeats the undisturbed
one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.data import Batch
from bpfree.training import mesh, steps
from bpfree.training.names import ConfigError
from bpfree.training.steps import Metrics, Task, TrainState

Block = Callable[[TrainState], tuple[TrainState, Metrics]]
_PIECE = 8  # steps whose batches are sent to the device at once


class Feed(NamedTuple):
    """A run's supply of batches.

    Attributes:
      block: `(length, state) -> block`, compiled for states like this one; a block does
        `length` steps, then looks at the validation set. It takes the state's buffers.
      position: () -> what a checkpoint must hold to go on from here (JSON).
      seek: takes the feed to such a position.
    """

    block: Callable[[int, TrainState], Block]
    position: Callable[[], Any]
    seek: Callable[[Any], None]


def on_device(task: Task, train: Batch, validation: Batch) -> Feed:
    """Batches are gathered on the device; their order is made there, too."""

    def block(length, state):
        def run(state, train, validation):
            return steps.block(task, length, state, train, validation)

        compiled = steps.compiled(run, state, train, validation)
        return lambda state: compiled(state, train, validation)

    return Feed(block, lambda: None, lambda position: None)


def from_grain(task: Task, examples: Any, validation: Batch) -> Feed:
    """Examples are read one by one, shuffled afresh in every epoch, by Grain.

    Args:
      examples: a sequence of {"x": ..., "label": ...}.

    The steps of a block are cut into pieces, and the next piece is read while the device
    works on the last. An epoch's last batch is filled up from the next epoch.

    Raises ConfigError: Grain is not installed.
    """
    try:
        import grain
    except ImportError as error:
        raise ConfigError(
            f"config.data.loader='grain' needs Grain ({error}): pip install -e '.[grain]'"
        ) from error
    seed = int(jax.random.bits(task.keys.order, dtype=jnp.uint32)) >> 1
    columns = mesh.columns(task.mesh, task.batch_size)

    def read(rows):
        """This process's columns of one batch."""
        parts = [[examples[i] for i in rows[column]] for column in columns]
        return [jax.tree.map(lambda *a: np.stack(a), *part) for part in parts]

    ordered = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat()
    batches = iter(ordered.batch(task.batch_size).map(read).to_iter_dataset())

    def take(length):
        """The next batches, (length, B, ...)."""
        taken = [next(batches) for _ in range(length)]
        parts = [
            jax.tree.map(lambda *a: np.stack(a), *part)
            for part in zip(*taken, strict=True)
        ]
        return mesh.assemble(task.mesh, task.batch_size, parts)

    def several(state, taken):
        return steps.scan_steps(task, state, taken, lambda batch: batch)

    def block(length, state):
        rest = length % _PIECE
        sizes = [_PIECE] * (length // _PIECE) + [rest] * (rest > 0)

        def piece(size):
            shapes = {
                k: mesh.shape_of_batches(
                    task.mesh, (size, task.batch_size, *a.shape[1:]), a.dtype
                )
                for k, a in validation.items()
            }
            return steps.compiled(several, state, shapes)

        run = {size: piece(size) for size in set(sizes)}
        look = jax.jit(functools.partial(steps.look, task))

        def pieces(state):
            losses = []
            for size in sizes:
                state, some = run[size](state, take(size))
                losses.append(some)
            return state, look(state, jnp.concatenate(losses), validation)

        return pieces

    return Feed(block, batches.get_state, batches.set_state)
