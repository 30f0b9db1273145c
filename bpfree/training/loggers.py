"""Curves for TensorBoard and for Weights & Biases, both optional, of the log points.

The run's own record, metrics.jsonl, is written in any case.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bpfree.training.metrics import Record
from bpfree.training.names import ConfigError, imported

Show = Callable[[Record], None]


def check(tensorboard: bool, wandb: str) -> None:
    """ConfigError if what is asked for is not installed."""
    if tensorboard:
        imported("tensorboardX", "--tensorboard", "tensorboardX", "tensorboard")
    if wandb:
        imported("wandb", "--wandb", "wandb", "wandb")


@contextlib.contextmanager
def opened(
    workdir: Path, config: Any, begun: int, tensorboard: bool, wandb: str
) -> Iterator[Show]:
    """`record -> None`: gives a record's numbers to the loggers that are asked for.

    Args:
      config: of the run, in JSON form.
      begun: updates done. Points after it, of a run that was killed and goes on from
        there, are hidden or sent again.
      tensorboard: write to `workdir/tensorboard`.
      wandb: a project of Weights & Biases, "" for none.

    Raises ConfigError: Weights & Biases cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        shows: list[Show] = []
        if tensorboard:
            shows.append(stack.enter_context(_tensorboard(workdir, begun)))
        if wandb:
            shows.append(stack.enter_context(_wandb(workdir, config, begun, wandb)))

        def show(record: Record) -> None:
            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
            step = numbers.pop("step")
            for each in shows:
                each({"step": step, **numbers})

        yield show


@contextlib.contextmanager
def _tensorboard(workdir: Path, begun: int) -> Iterator[Show]:
    """By tensorboardX, without TensorFlow."""
    from tensorboardX import SummaryWriter

    # The file's name has the second only: a run resumed within it would overwrite it.
    writer = SummaryWriter(
        str(workdir / "tensorboard"),
        purge_step=begun + 1,
        filename_suffix=f".{begun:09d}",
    )
    with writer:

        def show(record: Record) -> None:
            for name, value in record.items():
                if name != "step":
                    writer.add_scalar(name, value, record["step"])

        yield show


@contextlib.contextmanager
def _wandb(workdir: Path, config: Any, begun: int, project: str) -> Iterator[Show]:
    """A run of the project, which goes on when this one does: `workdir/wandb_id`."""
    import wandb

    path = workdir / "wandb_id"
    if not begun or not path.exists():
        path.write_text(uuid.uuid4().hex[:12])
    try:
        run = wandb.init(
            project=project,
            id=path.read_text(),
            resume="allow",
            name=workdir.name,
            dir=workdir,
            config=config,
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"--wandb={project}: {error} (WANDB_MODE=offline needs no network)"
        ) from error
    with run:

        def show(record: Record) -> None:
            values = dict(record)
            run.log(values, step=values.pop("step"))

        yield show
