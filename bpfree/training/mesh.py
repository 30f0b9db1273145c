"""One run on many devices: samples, batch and parameters over the axes of a mesh.

`config.mesh = "sample:4,data:2,model:2"` names the axes, the slowest first. Parameters,
and floats in the state of the chain, are cut along their last axis where `model` divides
it; all else is replicated. The estimate is that of one device up to rounding:
noise depends on (seed, step, sample, node) only. `None` stands for one device
everywhere, and leaves every array as it is.
"""

import math
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bpfree.training.names import ConfigError, unknown

AXES = ("sample", "data", "model")


def parse(text: str) -> dict[str, int]:
    """{axis: devices}, in the order written; {} for ""; raises ConfigError."""
    axes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, count = part.partition(":")
        if name not in AXES:
            raise unknown(f"config.mesh={text!r}: axis", name, AXES)
        if name in axes:
            raise ConfigError(f"config.mesh={text!r} names the axis {name!r} twice")
        if not count.isdecimal() or int(count) < 1:
            raise ConfigError(
                f"config.mesh={text!r}: {part!r} must be an axis and a number of "
                f"devices, such as '{name}:4'"
            )
        axes[name] = int(count)
    return axes


def make(text: str, present: list[Any] | None = None) -> Mesh | None:
    """The mesh that a config asks for; None for one device.

    Args:
      present: the devices to choose from, the first ones; by default those of JAX.

    Raises ConfigError: there are fewer devices; or there are several processes and it
    leaves devices out.
    """
    axes = parse(text)
    size, found = math.prod(axes.values()), present or jax.devices()
    if size > len(found) or (jax.process_count() > 1 and size != len(found)):
        processes = f" of {jax.process_count()} processes" * (jax.process_count() > 1)
        raise ConfigError(
            f"config.mesh={text!r} asks for {size} devices, and there are {len(found)} "
            f"{found[0].platform} devices{processes}; "
            f"config.mesh='data:{len(found)}' would use them all"
        )
    if size == 1:
        return None
    axes |= {name: 1 for name in ("sample", "data") if name not in axes}
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        devices=found[:size],
    )


def check_batch(mesh: Mesh | None, batch_size: int) -> None:
    """Raises ConfigError if the batch does not divide over the data axis."""
    if batch_size % (count := _devices(mesh, "data")):
        raise ConfigError(
            f"config.batch_size={batch_size} does not divide over the {count} devices of "
            "the axis 'data' of config.mesh"
        )


def _devices(mesh: Mesh | None, axis: str) -> int:
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def check_model(mesh: Mesh | None, params: Any) -> None:
    """Raises ConfigError if there is an axis `model` and nothing to cut over it."""
    count = _devices(mesh, "model")
    cut = [any(_spec(mesh, leaf)) for leaf in jax.tree.leaves(params)]
    if count > 1 and not any(cut):
        raise ConfigError(
            f"the axis 'model' of config.mesh has {count} devices, and there is no "
            "parameter whose last axis they divide"
        )


def samples(mesh: Mesh | None) -> NamedSharding | None:
    """What an estimator's `sharding` argument takes, or None: one device for samples."""
    if mesh is None or _devices(mesh, "sample") == 1:
        return None
    return NamedSharding(mesh, PartitionSpec("sample"))


def places(mesh: Mesh | None, state: Any) -> Any:
    """Where the leaves of a training state stand, by their shapes; None on one device."""
    return jax.tree.map(
        lambda leaf: mesh and NamedSharding(mesh, _spec(mesh, leaf)), state
    )


def _spec(mesh: Mesh | None, leaf: Any) -> PartitionSpec:
    """An optimiser's moments have the shape, and so the place, of their parameter."""
    count = _devices(mesh, "model")
    floats = jax.dtypes.issubdtype(leaf.dtype, np.floating)
    if count == 1 or not floats or not leaf.shape or leaf.shape[-1] % count:
        return PartitionSpec()
    return PartitionSpec(*[None] * (len(leaf.shape) - 1), "model")


def replicated(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled function: every device holds all of it."""
    return _constrained(mesh, PartitionSpec(), tree)


def in_place(mesh: Mesh | None, state: Any) -> Any:
    """Inside a compiled function: a training state, as `places` says."""
    if mesh is None:
        return state
    return lax.with_sharding_constraint(state, places(mesh, state))


def over_data(mesh: Mesh | None, batch: Any) -> Any:
    """Inside a compiled function: the first axis is cut over the axis `data`."""
    return _constrained(mesh, PartitionSpec("data"), batch)


def _constrained(mesh, spec, tree):
    if mesh is None:
        return tree
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def put(mesh: Mesh | None, tree: Any) -> Any:
    """The same values, which every process has, on every device."""
    return _put(tree, mesh and NamedSharding(mesh, PartitionSpec()))


def put_state(mesh: Mesh | None, state: Any) -> Any:
    """The same training state, which every process has, as `places` says."""
    return _put(state, mesh and places(mesh, state))


def _put(tree: Any, places: Any) -> Any:
    if places is None or jax.process_count() == 1:
        return jax.device_put(tree, places)
    return jax.jit(lambda t: t, out_shardings=places)(tree)


def local(tree: Any) -> Any:
    """Values as arrays on one device of this process.

    Of replicated ones this takes the copy that is here. If some are cut over the axis
    `model`, a run of one process gets them all as they are, since it can read them; with
    several processes they are gathered first.
    """
    cut = not all(a.is_fully_replicated for a in jax.tree.leaves(tree))
    if cut and jax.process_count() == 1:
        return tree

    def one(a: jax.Array) -> jax.Array:
        if not a.is_fully_replicated:
            place = NamedSharding(a.sharding.mesh, PartitionSpec())  # type: ignore
            a = jax.jit(lambda x: x, out_shardings=place)(a)
        return a.addressable_data(0)

    return jax.tree.map(one, tree)


def columns(mesh: Mesh | None, size: int) -> np.ndarray:
    """The places in a batch of `size` examples whose devices are in this process."""
    every = np.arange(size)
    if mesh is None:
        return every
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    found = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique([every[index] for index in found if index])


def assemble(mesh: Mesh | None, size: int, mine: Any) -> Any:
    """Batches (steps, size, ...) of the devices from this process's columns of them.

    Args:
      mine: a tree of numpy arrays (steps, columns, ...).
    """
    if mesh is None:
        return jax.device_put(mine)

    def whole(a: np.ndarray) -> jax.Array:
        shape = (len(a), size, *a.shape[2:])
        return jax.make_array_from_process_local_data(_of_batches(mesh), a, shape)

    return jax.tree.map(whole, mine)


def shapes_of_batches(mesh: Mesh | None, steps: int, batch: Any) -> Any:
    """What `assemble` returns of so many batches like this one, as ShapeDtypeStructs."""
    place = mesh and _of_batches(mesh)

    def stacked(a: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((steps, *a.shape), a.dtype, sharding=place)

    return jax.tree.map(stacked, batch)


def _of_batches(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, "data"))
