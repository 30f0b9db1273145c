"""Points that differ only in numbers, as one compiled program.

The numbers, seed included, are arguments (P,); everything else of a point (its draws, the
order of its data) is a function of them, so `vmap` runs all points, and devices share
them. A point whose numbers go wrong is marked; it does not touch the others.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.estimators.reading import find_state
from bpfree.sweeps.group import STACKED, Group, complaint, make_group
from bpfree.sweeps.result import Result, done, failed
from bpfree.training import blocks, checkpoint, job, metrics, resume, steps
from bpfree.training.steps import TrainState

# ------------------------------------------------------------------------- the programs


def _each(group: Group, function: Callable[..., Any], *axes: int | None, **out: Any):
    """`function(task, state, ...)`, vmapped over the points: of (states, numbers, ...).

    Args:
      axes: `in_axes` of the function's further arguments.
      out: further arguments of `vmap`.
    """

    def one(state, numbers, *rest):
        return function(group.draft(numbers).task, state, *rest)

    return jax.vmap(one, in_axes=(STACKED, 0, *axes), **out)


def _of_point(i: int, tree: Any) -> Any:
    return jax.tree.map(lambda a: a[i], tree)


class Placed(NamedTuple):
    """A group on its devices, points padded to a multiple of their number."""

    group: Group
    numbers: dict[str, jax.Array]
    state: TrainState
    train: Any
    validation: Any
    test: Any


def place(group: Group) -> Placed:
    """The numbers, first states and data on as many devices as there are points for."""
    devices = jax.devices()[: group.size]
    mesh = jax.make_mesh(
        (len(devices),), ("point",), axis_types=(AxisType.Auto,), devices=devices
    )
    rows = NamedSharding(mesh, PartitionSpec("point"))
    whole = NamedSharding(mesh, PartitionSpec())
    index = np.arange(-(-group.size // len(devices)) * len(devices)) % group.size
    numbers = jax.device_put({k: v[index] for k, v in group.numbers.items()}, rows)
    begin = jax.vmap(group.begin, out_axes=STACKED)
    where: Any = TrainState(whole, rows, rows, rows)  # type: ignore[arg-type]
    state = jax.jit(begin, out_shardings=where)(numbers)
    data = group.data
    parts = jax.device_put((data.train, data.validation, data.test), whole)
    return Placed(group, numbers, state, *parts)


def lowered(placed: Placed, length: int) -> jax.stages.Lowered:
    """`(state, numbers, train, count) -> (state, sums of losses (P,))`."""

    def advance(task, state, train, count):
        return steps.advance(task, length, state, train, count)

    run = _each(placed.group, advance, None, None, out_axes=(STACKED, 0))
    where = jax.tree.map(lambda a: a.sharding, placed.state)
    run = jax.jit(run, donate_argnums=0, out_shardings=(where, None))
    return run.lower(placed.state, placed.numbers, placed.train, np.int32(0))


# -------------------------------------------------------------------------- the training


class Runs(NamedTuple):
    """Where a group's results go: `home` has its checkpoints, each point its record."""

    home: Path
    workdirs: Sequence[Path]
    configs: Sequence[Any]


def fit_together(runs: Runs) -> list[Result]:
    """Train a group, or go on where its directory stopped; one result for each point.

    Raises ConfigError where the points cannot share a program, and what `fit` raises.
    """
    group = make_group(runs.configs)
    complaints = [complaint(made, group.data) for made in runs.configs]
    placed = place(group)
    with checkpoint.opened(runs.home) as manager:
        state = (checkpoint.restore(manager, placed.state) or (placed.state, None))[0]
        begun = int(state.step)
        for workdir, made in zip(runs.workdirs, runs.configs, strict=True):
            workdir.mkdir(parents=True, exist_ok=True)
            resume.open_record(
                workdir, made, group.data.source, begun, group.settings.num_steps
            )
        state = _train(runs, placed, state, manager, complaints)
    return _results(runs, placed, state, complaints)


def _train(runs, placed, state, manager, complaints) -> TrainState:
    settings, size = placed.group.settings, placed.group.size
    compiled = jax.jit(_each(placed.group, steps.look, 0, None))

    def advance(run, state, count):
        return run(state, placed.numbers, placed.train, np.int32(count))

    def look(state, losses, length):
        return compiled(state, placed.numbers, losses / length, placed.validation)

    def report(state, block):
        for i, workdir in enumerate(runs.workdirs):
            seen = _of_point(i, block.seen)
            mine = block._replace(seen=seen, seconds=block.seconds / size)
            metrics.write(workdir, "log", mine.log(settings.batch_size, 0))
        _mark(placed, state, complaints)
        return all(complaints)

    return blocks.run(
        settings,
        state,
        settings.num_steps,
        lower=lambda: (lowered(placed, settings.log_every), advance),
        look=look,
        report=report,
        save=lambda s: checkpoint.save(manager, s),
    )


def _mark(placed: Placed, state: TrainState, complaints: list[str | None]) -> None:
    """Say of every point whose numbers went wrong what and where."""
    steps_ = np.asarray(find_state(state.opt_state).fault.step)
    for i in range(placed.group.size):
        if steps_[i] >= 0 and complaints[i] is None:
            params, model_state, opt_state = _of_point(i, state[1:])
            made = placed.group.draft(_of_point(i, placed.numbers))
            batch = steps.with_state(made.batch, model_state)
            complaints[i] = bpfree.fault_message(opt_state, made.loss_fn, params, batch)


def _results(runs, placed, state, complaints) -> list[Result]:
    def measure(task, state, batch):
        return task.measure(state.params, state.model_state, batch)

    look = jax.jit(_each(placed.group, measure, None))
    parts = placed.test, placed.validation
    found = jax.device_get([look(state, placed.numbers, part) for part in parts])
    metric = job.find_metrics(placed.group.settings)[0]
    results = []
    for i, workdir in enumerate(runs.workdirs):
        if complaints[i] is not None:
            results.append(failed(complaints[i]))
            continue
        summary = metrics.summarize(workdir, int(state.step), *_of_point(i, found))
        results.append(done(summary, metrics.read_logs(workdir), metric))
    return results
