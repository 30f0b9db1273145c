"""`fit`: from a config to a trained network in a working directory."""

import contextlib
import functools
import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

import bpfree
from bpfree.training import (
    checkpoint,
    config,
    feed,
    interrupt,
    mesh,
    metrics,
    plot,
    processes,
    resume,
    steps,
    watch,
)
from bpfree.training.job import Job, prepare
from bpfree.training.steps import TrainState
from bpfree.training.workdir import claimed


class TrainingFault(RuntimeError):
    """The numbers went wrong; the message says at which step and node."""


class Result(NamedTuple):
    """What a run comes to.

    Attributes:
      test_accuracy, validation_accuracy: of the last parameters, 0 .. 1.
      params: the model's "params" collection.
      model_state: its other collections, {} if it has none.
      opt_state: state of the chain.
      steps: updates done, over all resumptions.
      resumed_from: updates already done when this call began; 0 for a fresh run.
    """

    test_accuracy: float
    validation_accuracy: float
    params: Any
    model_state: Any
    opt_state: Any
    steps: int
    resumed_from: int


def fit(
    config_: Any,
    workdir: str | Path,
    *,
    stop_after: int | None = None,
    profile: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Train what a config describes, or go on where `workdir` stopped.

    Writes config.json, metrics.jsonl, checkpoints/ and learning_curve.png. The same call
    on the same directory resumes from the newest checkpoint, and on one device ends with
    the very bits of an undisturbed run.

    Args:
      config_: ConfigDict or nested dict; the entries are those of `config.Settings`.
      workdir: made if need be.
      stop_after: save and stop at the first log point with at least so many updates.
      profile: trace one block into `workdir/profile`, see `watch.profiler`.
      tensorboard: write curves to `workdir/tensorboard`, see `watch.curves`.

    Raises:
      ConfigError: a config that cannot run, before anything is compiled; or a config or
        data that differ from those of the run to be resumed.
      TrainingFault: a loss or node is not finite. The last checkpoint is from before.
      WorkdirError: the directory is in use or cannot be written, its disk is full, or
        none of its checkpoints is sound.
      Interrupted: Ctrl-C or SIGTERM came; the end of that block is saved.
    """
    job = prepare(config.read(config_))
    record = config.as_json(config_)
    if tensorboard:
        watch.check_tensorboard()
    workdir = Path(workdir)
    last = job.settings.num_steps if stop_after is None else stop_after
    main = processes.is_main()
    with (
        claimed(workdir) if main else contextlib.nullcontext(),
        checkpoint.opened(workdir) as manager,
    ):
        devices = job.task.mesh
        state = steps.init_state(job.task, job.params, job.model_state)
        state = mesh.put(devices, state)
        validation, test = mesh.put(devices, (job.data.validation, job.data.test))
        source = job.make_feed(validation)
        if manager.latest_step() is not None:
            resume.check(workdir, record, job.data.source)
            state, position = checkpoint.restore(manager, state) or (state, None)
            source.seek(position)
        begun = int(state.step)
        processes.only_main(resume.open_record)(
            workdir, record, job.data.source, begun, job.settings.num_steps
        )
        with watch.curves(workdir, tensorboard and main, begun) as show:
            profiler = watch.profiler(workdir, profile and main)
            run = Run(job, workdir, manager, source, show, profiler)
            state = train(run, state, last)
        return _finish(job, workdir, state, validation, test, begun)


# ----------------------------------------------------------------------------- training


class Run(NamedTuple):
    """What the training loop works with: a job, and where its results go."""

    job: Job
    workdir: Path
    manager: checkpoint.Manager
    source: feed.Feed
    show: Callable[[metrics.Record], None] = lambda record: None
    profiler: watch.Profiler = lambda count, is_last: contextlib.nullcontext()


def train(run: Run, state: TrainState, last: int) -> TrainState:
    """Run block after block up to `last` updates or the end, looking in between.

    Takes the state's buffers over.
    """
    job, settings = run.job, run.job.settings
    align, look_every = watch.aligner(job), settings.diagnostics["every"]
    blocks = functools.cache(lambda length: run.source.block(length, state))
    write, quiet = processes.only_main(metrics.write), not processes.is_main()
    last = min(last, settings.num_steps)
    done = int(state.step)
    with (
        interrupt.noted() as came,
        tqdm(total=settings.num_steps, initial=done, unit="step", disable=quiet) as bar,
    ):
        for count in itertools.count():
            if done >= last:
                break
            length = min(settings.log_every, settings.num_steps - done)
            block = blocks(length)
            with run.profiler(count, done + length >= last):
                start = time.perf_counter()
                state, seen = block(state)
                seen = jax.device_get(seen)
                seconds = time.perf_counter() - start
            done += length
            _check_fault(job, run.manager, state)
            log = _log_point(job, done, length, seen, seconds)
            write(run.workdir, "log", log)
            run.show(log)
            if look_every and _due(done, length, look_every):
                aligned = align(state)
                write(run.workdir, "diagnostics", aligned)
                run.show(
                    {k: v for k, v in aligned.items() if isinstance(v, (int, float))}
                )
            bar.set_postfix_str(_words(log), refresh=False)
            bar.update(length)
            stop = processes.any_of(bool(came))
            if _due(done, length, settings.checkpoint_every) or done >= last or stop:
                checkpoint.save(run.manager, state, run.source.position())
            if stop and done < last:
                raise interrupt.Interrupted(came[0] if came else signal.SIGTERM, done)
    return state


def _due(done: int, length: int, every: int) -> bool:
    """Whether the last `length` steps crossed a multiple of `every`."""
    return done // every > (done - length) // every


def _log_point(job, done, length, seen, seconds) -> metrics.Record:
    return {
        "step": done,
        "loss": float(seen.loss),
        "accuracy": float(seen.accuracy),
        "seconds": seconds,
        "steps_per_second": length / seconds,
        "samples_per_second": length * job.num_samples / seconds,
        **{name: float(value) for name, value in seen.estimator.items()},
    }


def _words(log: metrics.Record) -> str:
    return (
        f"loss {log['loss']:.4f}, accuracy {log['accuracy']:.4f}, "
        f"{log['samples_per_second']:.0f} samples/s"
    )


def _check_fault(job, manager, state) -> None:
    opt_state, params = mesh.local((state.opt_state, state.params))
    message = bpfree.fault_message(opt_state, job.loss_fn, params, job.batch)
    if message is not None:
        saved = manager.latest_step()
        last = "There is no checkpoint yet."
        if saved is not None:
            last = f"The last good checkpoint, of step {saved}, is kept."
        raise TrainingFault(f"{message} {last}")


# ----------------------------------------------------------------------------- the end


def _finish(job, workdir, state, validation, test, begun) -> Result:
    look = jax.jit(functools.partial(steps.accuracy, job.task.model))
    result = Result(
        float(look(state.params, state.model_state, test)),
        float(look(state.params, state.model_state, validation)),
        state.params,
        state.model_state,
        state.opt_state,
        int(state.step),
        begun,
    )
    if processes.is_main():
        _summarize(job, workdir, result)
    return result


def _summarize(job, workdir, result) -> None:
    finished = result.steps >= job.settings.num_steps
    records = metrics.read(workdir)
    if finished and records[-1]["kind"] != "summary":
        summary = {
            "step": result.steps,
            "test_accuracy": result.test_accuracy,
            "validation_accuracy": result.validation_accuracy,
            "seconds": sum(r["seconds"] for r in metrics.logs_of(records)),
        }
        metrics.write(workdir, "summary", summary)
    links = " > ".join(name for name, _ in job.settings.chain)
    plot.learning_curve(
        metrics.read(workdir), workdir / "learning_curve.png", f"{workdir.name}: {links}"
    )
