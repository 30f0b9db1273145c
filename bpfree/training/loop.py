"""`fit`: from a config to a trained network in a working directory."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

import bpfree
from bpfree.training import (
    blocks,
    checkpoint,
    config,
    feed,
    loggers,
    mesh,
    metrics,
    opening,
    plot,
    processes,
    resume,
    steps,
    watch,
)
from bpfree.training.job import Job, prepare
from bpfree.training.steps import TrainState
from bpfree.training.workdir import WorkdirError, can_write, claimed, workdir_errors


class TrainingFault(RuntimeError):
    """The numbers went wrong; the message says at which step and node.

    Example:
        >>> from bpfree import training
        >>> issubclass(training.TrainingFault, RuntimeError)
        True
    """


class Result(NamedTuple):
    """What a run comes to.

    Attributes:
      test, validation: {metric: value} of the last parameters.
      params: the model's "params" collection.
      model_state: its other collections, {} if it has none.
      opt_state: state of the chain.
      steps: updates done, over all resumptions.
      resumed_from: updates already done when this call began; 0 for a fresh run.

    Example:
        >>> from bpfree import training
        >>> training.Result._fields[-2:]
        ('steps', 'resumed_from')
    """

    test: dict[str, float]
    validation: dict[str, float]
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
    wandb: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train what a config describes, or go on where `workdir` stopped.

    Writes config.json, metrics.jsonl, checkpoints/ and learning_curve.png. The same call
    on the same directory resumes from the newest checkpoint, and on one device ends with
    the very bits of an undisturbed run. With a larger `num_steps` it goes on with a
    finished run, too. A finished run is only read, so that it may lie where nothing can
    be written.

    Args:
      config_: ConfigDict or nested dict; the entries are those of `config.Settings`.
      workdir: made if need be.
      stop_after: save and stop at the first log point with at least so many updates.
      profile: trace one block into `workdir/profile`, see `watch.profiler`.
      tensorboard: write curves to `workdir/tensorboard`.
      wandb: a project of Weights & Biases to send curves to, see `training/loggers.py`.
      say: gets some lines about the run before it begins.

    Raises:
      ConfigError: a config that cannot run, before anything is compiled; or a config or
        data that differ from those of the run to be resumed.
      TrainingFault: a loss or node is not finite. The last checkpoint is from before.
      WorkdirError: the directory is in use or cannot be written, its disk is full, or
        none of its checkpoints is sound.
      Interrupted: Ctrl-C or SIGTERM came; the state of some seconds later is saved.

    Example:
        >>> import tempfile
        >>> from bpfree import training
        >>> from bpfree.training import config_files
        >>> config = config_files.load("digits").names["get_config"]("smoke")
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     result = training.fit(config, workdir)
        >>> result.steps
        1
    """
    job = prepare(config.read(config_))
    record = config.as_json(config_)
    loggers.check(tensorboard, wandb)
    workdir = Path(workdir)
    last = job.settings.num_steps if stop_after is None else stop_after
    main = processes.is_main()
    writable = can_write(workdir)
    with (
        claimed(workdir) if main and writable else workdir_errors(workdir),
        checkpoint.opened(workdir, read_only=not writable) as manager,
    ):
        state = steps.init_state(job.task, job.params, job.model_state)
        state = mesh.put_state(job.task.mesh, state)
        source = job.make_feed()
        if manager.latest_step() is not None:
            resume.check(workdir, config_, job.data.source)
            state, position = checkpoint.restore(manager, state) or (state, None)
            source.seek(position)
        begun = int(state.step)
        if not writable and begun < job.settings.num_steps:
            raise WorkdirError(
                f"{workdir} cannot be written, and its run is not finished: copy it, or "
                "choose another --workdir."
            )
        if writable:
            processes.only_main(resume.open_record)(
                workdir, record, job.data.source, begun, job.settings.num_steps
            )
        for line in opening.lines(job, workdir, begun) if main else ():
            say(line)
        wanted = (tensorboard, wandb) if main and begun < last else (False, "")
        with loggers.opened(workdir, record, begun, *wanted) as show:
            profiler = watch.profiler(workdir, profile and main)
            run = Run(job, workdir, manager, source, show, profiler)
            state = train(run, state, last)
            result = _finish(job, workdir, state, begun, main and writable)
            show({"step": result.steps, **metrics.of_part("test", result.test)})
        return result


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
    align, look_every = watch.aligner(job), settings.diagnostics.every
    write, quiet = processes.only_main(metrics.write), not processes.is_main()
    begun = int(state.step)
    validation = mesh.put(job.task.mesh, job.data.validation)
    look = jax.jit(partial(steps.look, job.task))

    def report(state, block):
        _check_fault(job, run.manager, state)
        log = block.log(job.task.batch_size, job.chain.num_samples)
        write(run.workdir, "log", log)
        run.show(log)
        if look_every and not block.stop:
            if blocks.due(block.step, block.length, look_every):
                aligned = align(state)
                write(run.workdir, "diagnostics", aligned)
                run.show(aligned)
        bar.set_postfix_str(metrics.in_words(log), refresh=False)
        bar.update(block.length)

    with tqdm(total=settings.num_steps, initial=begun, unit="step", disable=quiet) as bar:
        return blocks.run(
            settings,
            state,
            min(last, settings.num_steps),
            lower=lambda: run.source.lower(settings.log_every, state),
            look=lambda s, losses, count: look(s, losses / count, validation),
            report=report,
            save=lambda s: checkpoint.save(run.manager, s, run.source.position()),
            around=run.profiler,
            agree=processes.agree,
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


def _finish(job, workdir, state, begun, write) -> Result:
    look = jax.jit(job.task.measure)
    parts = mesh.put(job.task.mesh, (job.data.test, job.data.validation))
    found = [look(state.params, state.model_state, part) for part in parts]
    test, validation = jax.tree.map(float, jax.device_get(found))
    step, params, model_state, opt_state = state
    result = Result(test, validation, params, model_state, opt_state, int(step), begun)
    if write:
        if result.steps >= job.settings.num_steps:
            metrics.summarize(workdir, result.steps, test, validation)
        links = " > ".join(name for name, _ in job.settings.chain)
        title, picture = f"{workdir.name}: {links}", workdir / "learning_curve.png"
        plot.learning_curve(metrics.read(workdir), picture, title)
    return result
