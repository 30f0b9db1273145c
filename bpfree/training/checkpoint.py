"""Checkpoints by Orbax, in `workdir/checkpoints`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orbax.checkpoint as ocp

from bpfree.training.steps import TrainState


@contextmanager
def opened(workdir: Path) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a working directory, newest two kept.

    Saving is synchronous: the training step takes the state's buffers over, and on CPU an
    asynchronous writer may still be reading them.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, enable_async_checkpointing=False
    )
    path = (workdir / "checkpoints").absolute()
    with ocp.CheckpointManager(path, options=options) as manager:
        yield manager


def save(manager: ocp.CheckpointManager, state: TrainState) -> None:
    manager.save(int(state.step), args=ocp.args.StandardSave(state))


def restore(manager: ocp.CheckpointManager, template: TrainState) -> TrainState | None:
    """The newest checkpoint, with the structure and devices of `template`; else None."""
    step = manager.latest_step()
    if step is None:
        return None
    return manager.restore(step, args=ocp.args.StandardRestore(template))
