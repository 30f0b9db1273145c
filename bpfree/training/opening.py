"""What a run says before it begins."""

from collections.abc import Iterator
from pathlib import Path

import jax

import bpfree
from bpfree.data import sizes
from bpfree.equilibrium.energy import Energy
from bpfree.training.job import Job


def lines(job: Job, workdir: Path, begun: int) -> Iterator[str]:
    """Device, parameters, nodes, samples, data, and where files go."""
    settings = job.settings
    devices = jax.devices() if job.task.mesh is None else job.task.mesh.devices.flatten()
    count = 1 if job.task.mesh is None else len(devices)
    yield f"device: {count} of {jax.device_count()} {devices[0].device_kind}"
    leaves = jax.tree.leaves(job.params)
    size = sum(leaf.size for leaf in leaves)
    name = settings.model["name"]
    yield f"model: {name}, {size:,} parameters in {len(leaves)} arrays"
    yield f"nodes: {_nodes(job)}"
    passes = job.chain.num_samples
    noisy = f", {passes} noisy passes a step" if passes else ""
    name, size = settings.chain[0][0], settings.batch_size
    yield f"estimator: {name}{noisy}; {size} examples a step"
    parts = ", ".join(f"{n:,} {part}" for part, n in sizes(job.data).items())
    yield f"data: {settings.data['name']}, {parts} examples"
    going = f", from step {begun:,} on" if begun else ""
    yield f"steps: {settings.num_steps:,}{going}; files go to {workdir}"


def _nodes(job: Job) -> str:
    """Names of the nodes, some of them if there are many."""
    if isinstance(job.loss_fn, Energy):
        return "the states of an energy"
    try:
        recorded = bpfree.record(job.loss_fn)
        found = jax.eval_shape(recorded, job.params, job.batch, jax.random.key(0))[1]
    except (TypeError, ValueError):  # nodes that cannot be followed, say
        return "not known"
    names = list(found)
    more = ", ..." if len(names) > 6 else ""
    return f"{len(names)} ({', '.join(names[:6])}{more})" if names else "none"
