"""A trained network read again, for use and for evaluation."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.data import sizes
from bpfree.training import checkpoint, config, job, losses, metrics
from bpfree.training.resume import read_config
from bpfree.training.workdir import WorkdirError


class Trained(NamedTuple):
    """A run's newest checkpoint: `model.apply(variables, x)` gives the logits.

    Attributes:
      model: as the config describes it.
      variables: {"params": ..., other collections}.
      step: updates done.
      job: the run's data, chain and settings.

    Example:
        >>> from bpfree import training
        >>> training.Trained._fields
        ('model', 'variables', 'step', 'job')
    """

    model: Any
    variables: dict[str, Any]
    step: int
    job: job.Job


def load(workdir: str | Path) -> Trained:
    """Read what a run has trained; nothing in its directory changes.

    Args:
      workdir: the directory of the run.

    Returns:
      A `Trained`, with the model itself, for use without bpfree.

    Raises:
      ConfigError: the config does not run any more (a file of the user's is gone, say).
      WorkdirError: there is no run, or its checkpoint is damaged or of another model.

    Example:
        >>> import tempfile
        >>> from bpfree import training
        >>> from bpfree.training import config_files
        >>> config = config_files.load("digits").names["get_config"]("smoke")
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     result = training.fit(config, workdir)
        ...     trained = training.load(workdir)
        >>> trained.model.apply(trained.variables, jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """
    workdir = Path(workdir)
    if not (workdir / "checkpoints").is_dir():
        raise WorkdirError(f"{workdir} holds no run with checkpoints")
    found = checkpoint.read(workdir)
    settings = config.read(read_config(workdir))._replace(mesh="")  # one device will do
    made = job.prepare(settings)
    expected = {"params": made.params, **made.model_state}
    read = checkpoint.by_path({"params": found["params"], **found["model_state"]})
    wanted = checkpoint.by_path(expected)
    if jax.tree.map(jnp.shape, read) != jax.tree.map(jnp.shape, wanted):
        raise WorkdirError(
            f"the checkpoint in {workdir} is of another model than its config describes: "
            "the model's code has changed since"
        )
    leaves = [read[path] for path in wanted]
    variables = jax.tree.unflatten(jax.tree.structure(expected), leaves)
    return Trained(made.task.model, variables, int(found["step"]), made)


def scores(trained: Trained, part: str) -> dict[str, Any]:
    """Step, number of examples, loss and metrics on "validation" or "test"."""
    settings, batch = trained.job.settings, getattr(trained.job.data, part)
    loss = losses.find_loss(settings.loss, trained.model)
    wanted = job.find_metrics(settings)
    if not hasattr(trained.model, "objective"):
        wanted = (losses.metric_of(settings.loss), *wanted)
    state = {k: v for k, v in trained.variables.items() if k != "params"}
    measure = jax.jit(losses.measure(wanted, trained.model, loss))
    return {
        "step": trained.step,
        "examples": sizes(trained.job.data)[part],
        **metrics.of_part(part, measure(trained.variables["params"], state, batch)),
    }
