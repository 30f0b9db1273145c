"""`fit`: from a config to a trained network in a working directory."""

import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

import bpfree
from bpfree.training import checkpoint, config, interrupt, metrics, plot, steps
from bpfree.training.job import Job, prepare
from bpfree.training.names import ConfigError
from bpfree.training.steps import TrainState


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


def fit(config_: Any, workdir: str | Path, *, stop_after: int | None = None) -> Result:
    """Train what a config describes, or go on where `workdir` stopped.

    Writes config.json, metrics.jsonl, checkpoints/ and learning_curve.png. The same call
    on the same directory resumes from the newest checkpoint, and on one device ends with
    the very bits of an undisturbed run.

    Args:
      config_: ConfigDict or nested dict; the entries are those of `config.Settings`.
      workdir: made if need be.
      stop_after: save and stop at the first log point with at least so many updates.

    Raises:
      ConfigError: a config that cannot run, before anything is compiled; or a config or
        data that differ from those of the run to be resumed.
      TrainingFault: a loss or node is not finite. The last checkpoint is from before.
      Interrupted: Ctrl-C or SIGTERM came; the end of that block is saved.
    """
    job = prepare(config.read(config_))
    record = config.as_json(config_)
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with checkpoint.opened(workdir) as manager:
        state = steps.init_state(job.task, job.params, job.model_state)
        restored = None
        if manager.latest_step() is not None:
            _check_same_run(workdir, record)
            _check_same_data(workdir, job.data.source)
            restored = checkpoint.restore(manager, state)
        state = restored or state
        begun = int(state.step)
        _open_record(workdir, job, record, begun)
        last = job.settings.num_steps if stop_after is None else stop_after
        arrays = steps.device_data(job.data)
        state = _train(job, manager, workdir, state, arrays, last)
    return _finish(job, workdir, state, arrays, begun)


# ----------------------------------------------------------------------------- training


def _train(job, manager, workdir, state, arrays, last) -> TrainState:
    """Run block after block up to `last` updates or the end, looking in between."""
    settings, (train, validation, _) = job.settings, arrays

    @functools.cache
    def block(length):
        return steps.compile_block(job.task, length, state, train, validation)

    last = min(last, settings.num_steps)
    done = int(state.step)
    with (
        interrupt.noted() as came,
        tqdm(total=settings.num_steps, initial=done, unit="step") as bar,
    ):
        while done < last:
            length = min(settings.log_every, settings.num_steps - done)
            run = block(length)
            start = time.perf_counter()
            state, seen = run(state, train, validation)
            seen = jax.device_get(seen)
            seconds = time.perf_counter() - start
            done += length
            _check_fault(job, manager, state)
            log = _log_point(job, done, length, seen, seconds)
            metrics.write(workdir, "log", log)
            bar.set_postfix_str(_words(log), refresh=False)
            bar.update(length)
            if _due(done, length, settings.checkpoint_every) or done >= last or came:
                checkpoint.save(manager, state)
            if came and done < last:
                raise interrupt.Interrupted(came[0], done)
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
    message = bpfree.fault_message(state.opt_state, job.loss_fn, state.params, job.batch)
    if message is not None:
        saved = manager.latest_step()
        last = "There is no checkpoint yet."
        if saved is not None:
            last = f"The last good checkpoint, of step {saved}, is kept."
        raise TrainingFault(f"{message} {last}")


# ------------------------------------------------------------------------ the workdir


def _check_same_run(workdir: Path, record: Any) -> None:
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{workdir} holds checkpoints but no config.json, so what they belong to is "
            "unknown. Choose another --workdir."
        )
    changed = config.differences(json.loads(path.read_text()), record)
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with another config; these differ: "
            f"{', '.join(sorted(changed))}. Choose another --workdir, or restore "
            f"the values in {path}."
        )


def _check_same_data(workdir: Path, source: dict[str, Any]) -> None:
    """Whether the data are those of the run's header, wherever they lie now."""
    begun = [r["data"] for r in metrics.read(workdir) if r["kind"] == "header"]
    changed = config.differences({**begun[0], "from": ""}, {**source, "from": ""}, "data")
    if changed:
        raise ConfigError(
            f"{workdir} holds a run on other data; these differ: {', '.join(changed)}. "
            f"Choose another --workdir, or restore the data: {begun[0]}."
        )


def _open_record(workdir: Path, job: Job, record: Any, begun: int) -> None:
    if begun:
        metrics.rewind(workdir, begun)
        if begun < job.settings.num_steps:
            metrics.write(workdir, "resumed", {"step": begun, **metrics.environment()})
        return
    metrics.replace(workdir / "config.json", json.dumps(record, indent=2) + "\n")
    metrics.replace(metrics.path_of(workdir), "")
    header = {"config": record, "data": job.data.source, **metrics.environment()}
    metrics.write(workdir, "header", header)


def _finish(job, workdir, state, arrays, begun) -> Result:
    look = jax.jit(functools.partial(steps.accuracy, job.task.model))
    _, validation, test = arrays
    result = Result(
        float(look(state.params, state.model_state, test)),
        float(look(state.params, state.model_state, validation)),
        state.params,
        state.model_state,
        state.opt_state,
        int(state.step),
        begun,
    )
    finished = result.steps >= job.settings.num_steps
    records = metrics.read(workdir)
    if finished and records[-1]["kind"] != "summary":
        summary = {
            "step": result.steps,
            "test_accuracy": result.test_accuracy,
            "validation_accuracy": result.validation_accuracy,
            "seconds": sum(r["seconds"] for r in records if r["kind"] == "log"),
        }
        metrics.write(workdir, "summary", summary)
    links = " > ".join(name for name, _ in job.settings.chain)
    plot.learning_curve(
        metrics.read(workdir), workdir / "learning_curve.png", f"{workdir.name}: {links}"
    )
    return result
