"""How much longer training by the launcher takes than the bare jitted step.

    python scripts/launcher_overhead.py --config=configs/digits.py

Both train the same network from the same state, compiled beforehand. *Bare* is what a
user would write: a jitted step that takes the rows of its batch (the indices lie ready)
from the training set on the device, augments and updates, called once for every step; one
wait at the end. *Launcher* is the loop of `fit` with all it does: the order of batches,
validation, the fault check, metrics.jsonl, the progress bar and checkpoints, every one as
often as the config says. Not counted: compilation, and what `fit` does once (data, the
test set, the learning curve).

Rounds alternate, the first is left out; printed are the median and the range of the
launcher's time over the bare step's of the same round. --config may be repeated.
"""

import argparse
import contextlib
import os
import runpy
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.training import checkpoint, config, feed, loop, steps
from bpfree.training.job import Job, prepare


def load(name: str) -> Job:
    """The job of a config, with its argument: configs/digits.py:np."""
    path, _, arg = name.partition(":")
    return prepare(config.read(runpy.run_path(path)["get_config"](arg)))


def bare(job: Job, arrays, num_steps: int):
    """`state -> state`, `num_steps` calls of a jitted step."""
    train, rows = arrays[0], batches(job, num_steps)

    def step(state, rows, train):
        batch = jax.tree.map(lambda a: a[rows], train)
        return steps.train_step(job.task, state, batch)

    jitted = jax.jit(step, donate_argnums=0)

    def run(state):
        for i in range(num_steps):
            state, _ = jitted(state, rows[i], train)
        return jax.block_until_ready(state)

    return run


def batches(job: Job, num_steps: int) -> list[jax.Array]:
    size = len(job.data.train["label"])
    order = steps.batch_order(
        job.task.keys.order, jnp.int32(0), num_steps, size, job.task.batch_size
    )
    return list(order)


def launched(job: Job, arrays, num_steps: int):
    """`state -> state` by the launcher's loop, in a directory of its own."""
    source = feed.on_device(job.task, arrays[0])
    program, advance = source.lower(job.settings.log_every, state_of(job))
    compiled = program.compile()
    ready = SimpleNamespace(compile=lambda: compiled)
    cached = source._replace(lower=lambda length, state: (ready, advance))

    def run(state):
        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as null:
            workdir = Path(folder)
            with checkpoint.opened(workdir) as manager:
                with contextlib.redirect_stderr(null):
                    run = loop.Run(job, workdir, manager, cached)
                    return loop.train(run, state, num_steps)

    return run


def state_of(job: Job):
    params, model_state = jax.tree.map(jnp.copy, (job.params, job.model_state))
    return steps.init_state(job.task, params, model_state)


def timed(run, job: Job) -> float:
    state = jax.block_until_ready(state_of(job))
    start = time.perf_counter()
    jax.block_until_ready(run(state))
    return time.perf_counter() - start


def measure(name: str, rounds: int, num_steps: int) -> None:
    job = load(name)
    if num_steps:  # the launcher stops at log points only
        log_every = min(num_steps, job.settings.log_every)
        job = job._replace(settings=job.settings._replace(log_every=log_every))
    arrays = jax.device_put((job.data.train, job.data.validation))
    num_steps = num_steps or job.settings.checkpoint_every
    pair = [make(job, arrays, num_steps) for make in (bare, launched)]
    times = np.array([[timed(run, job) for run in pair] for _ in range(rounds + 1)])[1:]
    ratios = times[:, 1] / times[:, 0]
    low, middle, high = ratios.min(), np.median(ratios), ratios.max()
    print(
        f"{name}: {num_steps} steps, bare {np.median(times[:, 0]):.2f} s, ratio "
        f"{middle:.3f} ({low:.3f} to {high:.3f}, {rounds} rounds)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="default: checkpoint_every")
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {os.cpu_count()} cores")
    for name in args.config:
        measure(name, args.rounds, args.steps)


if __name__ == "__main__":
    main()
