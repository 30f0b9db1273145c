"""Checkpoints by Orbax, in `workdir/checkpoints`, each with the checksums of its files.

Orbax gives a checkpoint its name when it is whole, so a killed run leaves none half
written. Damage that comes later it may not see: one changed bit of an array can be
restored silently, and a file next to them be read in their stead. So every
checkpoint gets a file SHA256SUMS, compared before anything of it is read.
(`sha256sum -c SHA256SUMS` does the same.)

A checkpoint holds numbers and JSON, and restoring it executes nothing of it.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import orbax.checkpoint as ocp

from bpfree.training import processes
from bpfree.training.steps import TrainState
from bpfree.training.workdir import WorkdirError, advice, replace

Manager: TypeAlias = ocp.CheckpointManager
_SUMS = "SHA256SUMS"
_Args = ocp.args.Composite


@contextmanager
def opened(workdir: Path, read_only: bool = False) -> Iterator[Manager]:
    """The checkpoints of a working directory, newest two kept.

    Args:
      read_only: nothing is made or removed.

    Saving is synchronous: the training step takes the state's buffers over, and on CPU an
    asynchronous writer may still be reading them.
    """
    logging.getLogger("absl").addFilter(_worth_saying)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=None if read_only else 2,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
    )
    path = (workdir / "checkpoints").absolute()
    with ocp.CheckpointManager(path, options=options) as manager:
        yield manager


def save(manager: Manager, state: TrainState, position: Any = None) -> None:
    """Write the checkpoint of `state.step`; WorkdirError if that fails.

    Args:
      position: of the run's feed, JSON.
    """
    step = int(state.step)
    try:
        feed = ocp.args.JsonSave({"position": position})
        manager.save(step, args=_Args(state=ocp.args.StandardSave(state), feed=feed))
        processes.only_main(_sum)(_folder(manager, step))
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise WorkdirError(
            f"the checkpoint of step {step} could not be written: {_line(error)}. "
            + advice(error)
        ) from error


def _sum(folder: Path) -> None:
    sums = (f"{digest}  {name}\n" for name, digest in _digests(folder).items())
    replace(folder / _SUMS, "".join(sums))


def restore(manager: Manager, template: TrainState) -> tuple[TrainState, Any] | None:
    """The newest sound checkpoint, on the devices of `template`, and the feed's position.

    None if there is no checkpoint.

    Damaged newer ones are moved to `workdir/damaged`, and a line on stderr says so.

    Raises WorkdirError if there are checkpoints and none of them is sound; then all of
    them stay where they are.
    """
    damaged: dict[int, str] = {}
    args = _Args(state=ocp.args.StandardRestore(template), feed=ocp.args.JsonRestore())
    for step in sorted(manager.all_steps(), reverse=True):
        problem = _agreed_problem(_folder(manager, step)) or _unlike(
            _folder(manager, step) / "state", template
        )
        if problem is None:
            try:
                found = manager.restore(step, args=args)
            except Exception as error:  # Orbax and TensorStore raise many kinds
                problem = _line(error)
            else:
                problem = _misfit(found.state, template)
        if problem is None:
            processes.wait("restored")
            processes.only_main(_set_aside)(manager, damaged, step)
            manager.reload()
            return found.state, found.feed["position"]
        damaged[step] = problem
    if damaged:
        raise WorkdirError(
            f"no checkpoint in {_folder(manager)} can be restored: {_words(damaged)}. "
            "Choose another --workdir, or delete that folder to begin anew."
        )
    return None


def read(workdir: Path) -> Any:
    """The newest checkpoint of a run that is not touched, as nested dicts of arrays.

    Raises WorkdirError if there is none, or if it is damaged.
    """
    with opened(workdir, read_only=True) as manager:
        step = manager.latest_step()
        if step is None:
            raise WorkdirError(f"there is no checkpoint in {_folder(manager)}")
        problem = _agreed_problem(_folder(manager, step))
        if problem is not None:
            raise WorkdirError(
                f"the checkpoint in {_folder(manager, step)} is damaged: {problem}"
            )
        args = _Args(state=ocp.args.StandardRestore())
        return manager.restore(step, args=args)["state"]


def _set_aside(manager: Manager, damaged: dict[int, str], to: int) -> None:
    if not damaged:
        return
    place = _folder(manager).parent / "damaged"
    place.mkdir(exist_ok=True)
    for step in damaged:
        names = [str(step), *(f"{step}.{i}" for i in range(1, 1000))]
        free = next(name for name in names if not (place / name).exists())
        os.rename(_folder(manager, step), place / free)
    print(
        f"bpfree-train: damaged checkpoints are moved to {place}: {_words(damaged)}; "
        f"going on from step {to}",
        file=sys.stderr,
    )


def _folder(manager: Manager, step: int | None = None) -> Path:
    folder = Path(manager.directory)
    return folder if step is None else folder / str(step)


def _digests(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of everything in a checkpoint."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / _SUMS)
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
    }


def _agreed_problem(folder: Path) -> str | None:
    """What process 0 finds; the others read nothing."""
    problem = _problem(folder) if processes.is_main() else None
    _, damaged = processes.agree(0, bool(problem))
    return (problem or "process 0 says why") if damaged else None


def _problem(folder: Path) -> str | None:
    """How a checkpoint differs from its SHA256SUMS; None where it does not.

    One without the file is whole, but was never summed: the run was killed right there.
    """
    try:
        lines = (folder / _SUMS).read_text(errors="replace").splitlines()
        found = _digests(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error)
    expected = {name: digest for digest, _, name in (x.partition("  ") for x in lines)}
    names = sorted(expected.keys() | found.keys())
    wrong = [name for name in names if found.get(name) != expected.get(name)]
    if not wrong:
        return None
    if wrong[0] not in expected:
        return f"{wrong[0]} does not belong to it"
    return f"{wrong[0]} is {'not as it was written' if wrong[0] in found else 'missing'}"


def _unlike(folder: Path, template: TrainState) -> str | None:
    """The first parameter that a checkpoint lacks or has in another shape.

    Orbax would say so too, but in hundreds of lines.
    """
    try:
        found = _shapes(ocp.PyTreeCheckpointHandler().metadata(folder).tree["params"])
    except Exception:  # what is damaged is said where it is read
        return None
    wanted = _shapes(template.params)
    for name in sorted(found.keys() | wanted.keys()):
        was, now = (tree.get(name, "missing") for tree in (found, wanted))
        if was != now:
            return f"parameter {name} is {was} in it and {now} in the model: another one"
    return None


def _shapes(tree: Any) -> dict[str, Any]:
    return {name: tuple(leaf.shape) for name, leaf in by_path(tree).items()}


def by_path(tree: Any) -> dict[str, Any]:
    """{path: leaf}, paths as text: Orbax reads the numbers in a path back as text."""
    leaves = jax.tree.leaves_with_path(tree)
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): leaf for path, leaf in leaves}


def _misfit(state: TrainState, template: TrainState) -> str | None:
    """The first leaf of another type, which Orbax restores silently."""
    expected = jax.tree.leaves(template)
    for (name, a), b in zip(by_path(state).items(), expected, strict=True):
        if a.dtype != b.dtype:
            return f"{name} is {a.dtype}, not {b.dtype}: another bpfree wrote it"
    return None


def _worth_saying(record: logging.LogRecord) -> bool:
    """False for errors that Orbax's threads log with tracebacks, and raise, too; and for
    its warnings that what was opened to be read only is read only."""
    if "orbax" not in record.pathname:
        return True
    return not record.exc_info and "read only" not in record.getMessage().replace(
        "_", " "
    )


def _line(error: BaseException) -> str:
    """What an error says, in one line of reasonable length: its beginning and end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:80]} ... {text[-120:]}"


def _words(damaged: dict[int, str]) -> str:
    return "; ".join(f"step {step} ({problem})" for step, problem in damaged.items())
