"""Points that differ only in numbers, as one compiled program.

The numbers, seed included, are arguments (P,); everything else of a point (its draws, the
order of its data) is a function of them, so `vmap` runs all points, and devices share
them. A point whose numbers go wrong is marked; it does not touch the others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.estimators.reading import find_state
from bpfree.sweeps.group import STACKED, Group, check, make_group
from bpfree.sweeps.result import Result, done, failed
from bpfree.training import blocks, checkpoint, feed, job, metrics, resume, steps
from bpfree.training.steps import TrainState

# ------------------------------------------------------------------------- the programs


def _advance(group: Group, length: int):
    def one(state, numbers, count, train):
        task = group.draft(numbers).task
        return steps.piece(task, length, state, count, train)

    return jax.vmap(one, in_axes=(STACKED, 0, None, None), out_axes=(STACKED, 0))


def _look(group: Group):
    def one(state, numbers, loss, validation):
        return steps.look(group.draft(numbers).task, state, loss, validation)

    return jax.vmap(one, in_axes=(STACKED, 0, 0, None))


def _measures(group: Group):
    def one(state, numbers, batch):
        measure = group.draft(numbers).task.measure
        return measure(state.params, state.model_state, batch)

    return jax.vmap(one, in_axes=(STACKED, 0, None))


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
    """`(state, numbers, count, train) -> (state, sums of losses (P,))`."""
    arguments = (placed.state, placed.numbers, np.int32(0), placed.train)
    where = jax.tree.map(lambda a: a.sharding, placed.state)
    run = jax.jit(
        _advance(placed.group, length), donate_argnums=0, out_shardings=(where, None)
    )
    return run.lower(*arguments)


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
    complaints = check(runs.configs, group.data)
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
    compiled = jax.jit(_look(placed.group))

    def lower():
        program = lowered(placed, settings.log_every)

        def compile():
            run = program.compile()
            return lambda s, n: run(s, placed.numbers, np.int32(n), placed.train)

        return feed.Lowered(compile)

    def look(state, losses, length):
        return compiled(state, placed.numbers, losses / length, placed.validation)

    def report(state, block):
        for i, workdir in enumerate(runs.workdirs):
            seen = jax.tree.map(lambda a: a[i], block.seen)  # noqa: B023
            mine = block._replace(seen=seen, seconds=block.seconds / size)
            metrics.write(workdir, "log", mine.log(settings.batch_size, 0))
        _mark(placed, state, complaints)
        return all(complaints)

    return blocks.run(
        settings,
        state,
        settings.num_steps,
        lower=lower,
        look=look,
        report=report,
        save=lambda s: checkpoint.save(manager, s),
    )


def _mark(placed: Placed, state: TrainState, complaints: list[str | None]) -> None:
    """Say of every point whose numbers went wrong what and where."""
    steps_ = np.asarray(find_state(state.opt_state).fault.step)
    for i in range(placed.group.size):
        if steps_[i] >= 0 and complaints[i] is None:
            mine = jax.tree.map(lambda a: a[i], (state.params, state.opt_state))  # noqa: B023
            made = placed.group.draft({k: v[i] for k, v in placed.numbers.items()})
            batch = {k: v for k, v in made.batch.items() if k != "state"}
            state_ = jax.tree.map(lambda a: a[i], state.model_state)  # noqa: B023
            complaints[i] = bpfree.fault_message(
                mine[1], made.loss_fn, mine[0], steps.with_state(batch, state_)
            )


def _results(runs, placed, state, complaints) -> list[Result]:
    look = jax.jit(_measures(placed.group))
    test = jax.device_get(look(state, placed.numbers, placed.test))
    validation = jax.device_get(look(state, placed.numbers, placed.validation))
    metric = job.find_metrics(placed.group.settings)[0]
    results = []
    for i, workdir in enumerate(runs.workdirs):
        if complaints[i] is not None:
            results.append(failed(complaints[i]))
            continue
        mine = jax.tree.map(lambda a: a[i], (test, validation))  # noqa: B023
        summary = metrics.summarize(workdir, int(state.step), *mine)
        results.append(done(summary, metrics.logs_of(metrics.read(workdir)), metric))
    return results
