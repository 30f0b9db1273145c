"""`bpfree-train --compile_for=TARGET`: the report of the very step that a run would take.

Neither the working directory nor the files of image sets are touched; other sets are
read as in a run.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bpfree.data import Dataset, Examples, places
from bpfree.data.augment import flip_and_crop
from bpfree.data.catalogue import SETS
from bpfree.data.preprocess import Affine, then
from bpfree.equilibrium.energy import Energy
from bpfree.hardware import targets
from bpfree.hardware.report import Report, report
from bpfree.hardware.table import duration, table
from bpfree.training import chain, config, job, mesh, steps
from bpfree.training.names import ConfigError

_PIECE = 8  # steps in a call, of batches that Grain reads; noisy passes side by side


def compile_for(config_: Any, text: str) -> str:
    """The table of a config's step on a target, its backprop twin in the next column.

    Raises ConfigError: what the config or the target cannot be, in one line.
    """
    try:
        target = targets.find(text)
        targets.stay_on_cpu(target)
        settings = config.read(config_)
        data = like(settings) or job.load(settings)
        made = job.draft(settings, data, targets.devices(target))
        reports = {"this config": of_step(settings, made, data, target)}
        if settings.chain[0][0] != "backprop" and not isinstance(made.loss_fn, Energy):
            twin = _twin(settings, reports["this config"].devices)
            made = job.draft(twin, data, targets.devices(target))
            reports["backprop"] = of_step(twin, made, data, target)
    except targets.HardwareError as error:
        raise ConfigError(f"--compile_for={text}: {error}") from error
    lines = [table(reports)]
    for name, found in reports.items():
        if found.step_seconds:
            total = sum(found.seconds.values()) * settings.num_steps
            lines.append(
                f"{name}: {settings.num_steps} steps take at least {duration(total)}"
            )
    return "\n".join(lines)


def of_step(
    settings: config.Settings, made: job.Draft, data: Dataset, target: targets.Target
) -> Report:
    """The report of a block of training steps, as the launcher compiles it."""
    chain.check(made.chain, made.shapes, made.batch)
    task = made.task

    def begin(key):
        return steps.init_state(task, *made.init(key))

    def on_device(tree):
        place = task.mesh and NamedSharding(task.mesh, PartitionSpec())
        return jax.tree.map(lambda a: _placed(a, place), tree)

    state = jax.eval_shape(begin, task.keys.init)
    state = jax.tree.map(_placed, state, mesh.places(task.mesh, state))
    if isinstance(data.train, Examples):
        length = min(_PIECE, settings.log_every)
        batch = steps.without_state(made.batch)
        taken = mesh.shapes_of_batches(task.mesh, length, batch)

        def block(state, batches):
            batch_of = lambda i: jax.tree.map(lambda a: a[i], batches)  # noqa: E731
            return steps.count_steps(task, state, length, batch_of)

        args: tuple = (state, taken)
    else:
        length = min(settings.log_every, settings.num_steps)

        def block(state, train, validation):  # type: ignore[misc]
            state, losses = steps.advance(task, length, state, train)
            return state, steps.look(task, state, losses / length, validation)

        args = (state, on_device(data.train), on_device(data.validation))
    found = report(jax.jit(block, donate_argnums=0), args, target, steps=length)
    return found._replace(inference=_inference(settings, made, state, target))


def _placed(leaf, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _inference(settings, made: job.Draft, state, target) -> float | None:
    """Seconds in which one device runs the model on its examples of a step, at least.

    A step's noisy passes are so many batches, up to eight side by side.
    """
    axes = {"sample": 1, "data": 1} | dict(made.task.mesh.shape if made.task.mesh else {})
    passes = max(1, made.chain.num_samples // axes["sample"])
    together = min(passes, _PIECE)
    rows = together * (settings.batch_size // axes["data"])
    x = made.batch["x"]

    def run(params, model_state, x):
        return made.task.model.apply({**model_state, "params": params}, x)

    bare = jax.tree.map(_placed, (state.params, state.model_state))
    inputs = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    seconds = report(run, (*bare, inputs), target).step_seconds
    return seconds and seconds * passes / together


def _twin(settings: config.Settings, devices: int) -> config.Settings:
    """The same config with backprop, its batch over as many devices as divide it."""
    spread = math.gcd(settings.batch_size, devices)
    changed = (("backprop", {}), *settings.chain[1:])
    text = f"data:{spread}" if spread > 1 else ""
    return settings._replace(chain=changed, mesh=text)


def like(settings: config.Settings) -> Dataset | None:
    """A set with the shapes of a known image set, which takes no memory; else None."""
    section = dict(settings.data)
    name = section["name"]
    if name not in SETS or not any(SETS[name].sizes):
        return None
    shape, (train, test) = SETS[name].shape, SETS[name].sizes
    held = places.held_out(train)

    def part(count):
        x = np.broadcast_to(np.zeros((), np.float32), (count, *shape))
        return {"x": x, "label": np.broadcast_to(np.int32(0), (count,))}

    augment = flip_and_crop(section.get("flip", False), section.get("crop", 0))
    if augment is not None and section.get("preprocess", "none") != "none":
        features = math.prod(shape)
        full = np.eye(features, dtype=np.float32)
        mean = np.zeros((1, features), np.float32)
        augment = then(augment, Affine(mean, None, full))
    whole = part(train - held)
    if section.get("loader") == "grain":
        row = {k: v[0] for k, v in whole.items()}
        whole = Examples(train - held, lambda i: row)
    classes = SETS[name].num_classes
    return Dataset(whole, part(held), part(test), classes, {"name": name}, augment)
