"""Optional looks at a run: alignment, and a profile of one block."""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from bpfree import diagnostics
from bpfree.training import mesh
from bpfree.training.job import Job
from bpfree.training.metrics import Record
from bpfree.training.steps import TrainState, with_state, without_state

Aligner = Callable[[TrainState], Record]
Profiler = Callable[[int, bool], AbstractContextManager]


def aligner(job: Job) -> Aligner:
    """`state -> record`: how the estimator, as it stands, points on the first batch.

    The gradient to compare with is backprop's on the same batch; no parameter moves.
    """
    inputs = without_state(job.batch)
    repeats = job.settings.diagnostics.repeats

    @functools.cache
    def meter():
        return diagnostics.make_meter(
            job.chain.estimator, job.params, job.batch, repeats=repeats
        )

    def look(state: TrainState) -> Record:
        state = mesh.local(state)
        step = int(state.step)
        batch = with_state(inputs, state.model_state)
        report = meter()(state.params, batch, seed=step, state=state.opt_state[0])
        found = report.overall
        seen = {
            "step": step,
            "cosine": found.cosine,
            "slope": found.slope,
            "variance": found.variance,
            "cost": report.cost,
            "cosine_of": {k: a.cosine for k, a in report.groups.items()},
        }
        return jax.tree.map(lambda x: None if x != x else x, seen)  # JSON has no nan

    return look


def profiler(workdir: Path, wanted: bool) -> Profiler:
    """`(count, is_last) -> context`: traces the second block, or the only one.

    The trace goes to `workdir/profile`: TensorBoard's profile plugin reads the folder,
    and ui.perfetto.dev opens the file perfetto_trace.json.gz in it.
    """

    def around(count: int, is_last: bool) -> AbstractContextManager:
        if wanted and (count == 1 or (count == 0 and is_last)):
            return jax.profiler.trace(workdir / "profile", create_perfetto_trace=True)
        return contextlib.nullcontext()

    return around
