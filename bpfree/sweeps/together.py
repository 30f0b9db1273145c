"""Points that differ only in numbers, as one compiled program.

The numbers, seed included, are arguments (P,); everything else of a point (its draws, the
order of its data) is a function of them, so `vmap` runs all points, and devices share
them. A point whose numbers go wrong is marked; it does not touch the others.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.estimators.reading import find_state
from bpfree.sweeps import points
from bpfree.sweeps.group import STACKED, Group, check, make_group
from bpfree.sweeps.result import Result, done, failed
from bpfree.training import checkpoint, interrupt, metrics, resume, steps
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


def _accuracies(group: Group):
    def one(state, numbers, batch):
        model = group.draft(numbers).task.model
        return steps.accuracy(model, state.params, state.model_state, batch)

    return jax.vmap(one, in_axes=(STACKED, 0, None))


class Placed(NamedTuple):
    """A group on its devices, points padded to a multiple of their number."""

    group: Group
    numbers: dict[points.Path, jax.Array]
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


def compiled(placed: Placed, length: int):
    """`(state, numbers, count, train) -> (state, sums of losses (P,))`, compiled."""
    arguments = (placed.state, placed.numbers, np.int32(0), placed.train)
    where = jax.tree.map(lambda a: a.sharding, placed.state)
    run = jax.jit(
        _advance(placed.group, length), donate_argnums=0, out_shardings=(where, None)
    )
    return interrupt.wait_for(run.lower(*arguments).compile)


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
    settings = placed.group.settings
    step, pace = int(state.step), 1
    if step >= settings.num_steps:
        return state
    look = jax.jit(_look(placed.group))
    with interrupt.noted() as came:
        program = compiled(placed, settings.log_every)
        advance = lambda s, n: program(s, placed.numbers, np.int32(n), placed.train)  # noqa: E731
        while step < settings.num_steps and not all(complaints):
            length = min(
                settings.log_every - step % settings.log_every, settings.num_steps - step
            )
            start = time.perf_counter()
            state, losses, length, pace, stop = interrupt.pieces(
                advance, state, length, pace, came
            )
            seen = look(state, placed.numbers, losses / length, placed.validation)
            seen = jax.device_get(seen)
            seconds = (time.perf_counter() - start) / placed.group.size
            step += length
            _log(runs, placed, step, length, seen, seconds)
            _mark(placed, state, complaints)
            last = step >= settings.num_steps
            if step % settings.checkpoint_every == 0 or last or stop:
                checkpoint.save(manager, state)
            if stop and not last:
                raise interrupt.Interrupted(came[0], f"stopped and saved at step {step}")
    return state


def _log(runs, placed, step: int, length: int, seen, seconds: float) -> None:
    """A log point of every point; seconds are its share of the block's."""
    batch_size = placed.group.settings.batch_size
    for i, workdir in enumerate(runs.workdirs):
        record = {
            "step": step,
            "train/loss": float(seen.loss[i]),
            "validation/accuracy": float(seen.accuracy[i]),
            "seconds": seconds,
            **metrics.speed(length / seconds, batch_size, 0),
            **{name: float(v[i]) for name, v in seen.estimator.items()},
        }
        metrics.write(workdir, "log", record)


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
    look = jax.jit(_accuracies(placed.group))
    test = np.asarray(look(state, placed.numbers, placed.test))
    validation = np.asarray(look(state, placed.numbers, placed.validation))
    results = []
    for i, workdir in enumerate(runs.workdirs):
        if complaints[i] is not None:
            results.append(failed(complaints[i]))
            continue
        records = metrics.read(workdir)
        logs = metrics.logs_of(records)
        summary = {
            "step": int(state.step),
            "test_accuracy": float(test[i]),
            "validation_accuracy": float(validation[i]),
            "seconds": sum(r["seconds"] for r in logs),
        }
        if records[-1]["kind"] != "summary":
            metrics.write(workdir, "summary", summary)
        results.append(done(summary, logs))
    return results
