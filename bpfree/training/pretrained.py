"""Fine-tuning: values to begin from, of an earlier run or of any function.

    config.pretrained = {"workdir": "runs/first", "fresh": ("Dense_2",)}
    config.pretrained = {"name": "./port.py:load", "file": "weights.npz"}

A function is named as in `training/own.py`. It gets the section's other entries and
returns variables as the model's `init` does, {"params": ..., and "batch_stats": ... where
the model has such}, with NumPy or JAX arrays for leaves. Of an NNX module or a pair of
plain functions they are {"params": ...}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.program.marking import param_path
from bpfree.training import checkpoint, own
from bpfree.training.names import ConfigError, call, check_known
from bpfree.training.workdir import WorkdirError

Section = Mapping[str, Any]


def check(section: Any) -> dict[str, Any]:
    """The config's entry `pretrained`, or {}; raises ConfigError.

    Its keys: "workdir", of the run to begin from, or "name", of a function, and its
    arguments; "fresh", names of the model's modules that begin at random all the same (a
    readout for other classes, adapters). A name alone may stand in place of the dict.
    """
    section = {"name": section} if isinstance(section, str) else section
    if not isinstance(section, Mapping):
        raise ConfigError(f"config.pretrained={section!r} has the wrong type")
    kinds: dict[str, Any] = {"workdir": str, "name": str, "fresh": (list, tuple)}
    if "name" not in section:
        check_known("config.pretrained entry", section, kinds)
    for key, kind in kinds.items():
        if key in section and not isinstance(section[key], kind):
            raise ConfigError(
                f"config.pretrained.{key}={section[key]!r} has the wrong type"
            )
    return dict(section)


def read(section: Section) -> Any:
    """The variables to begin from, in NumPy arrays; None without a section.

    Raises ConfigError: no such run or function; what a function itself refuses, or a
    result that is no variables.
    """
    if not section:
        return None
    with jax.ensure_compile_time_eval():  # the caller may be traced
        found = _made(section) if "name" in section else _of_run(section)
        return jax.tree.map(np.asarray, jax.device_get(found))


def _of_run(section: Section) -> dict[str, Any]:
    """The variables of the run's newest checkpoint."""
    if not section.get("workdir"):
        raise ConfigError(
            "config.pretrained.workdir is missing: the directory of the run to begin "
            "from; or config.pretrained.name, of a function that returns the values"
        )
    workdir = Path(section["workdir"]).absolute()
    if not (workdir / "checkpoints").is_dir():
        raise ConfigError(
            f"config.pretrained.workdir: {workdir} holds no run with checkpoints"
        )
    try:
        found = checkpoint.read(workdir)
    except WorkdirError as error:
        raise ConfigError(f"config.pretrained.workdir: {error}") from error
    return {"params": found["params"], **found["model_state"]}


def _made(section: Section) -> Mapping[str, Any]:
    """The variables that the user's function returns."""
    where, name = "config.pretrained", section["name"]
    if not own.is_own(name):
        raise ConfigError(
            f"{where}.name={name!r} must say where the function is, as './port.py:load' "
            "or 'my_lab.port:load' does"
        )
    rest = {k: v for k, v in section.items() if k not in ("name", "fresh")}
    found = call(own.find(name, where), rest, where)
    if not isinstance(found, Mapping) or "params" not in found:
        raise ConfigError(
            f"{where}: {name} gives a {type(found).__name__} without 'params': return "
            "{'params': ...}, as the model's init does"
        )
    return found


def begin(section: Section, found: Any, params: Any, model_state: Any) -> tuple[Any, Any]:
    """(params, model_state) with the values of `found` in all modules but fresh ones.

    What the model does not have is left out. Traceable.

    Args:
      found: what `read` returns.

    Raises ConfigError: a fresh module that the model does not have; a parameter that is
    missing in `found` or has another shape there.
    """
    if found is None:
        return params, model_state
    fresh = tuple(section.get("fresh", ()))
    modules = params if isinstance(params, Mapping) else ()
    check_known("config.pretrained: module", fresh, modules)
    leaves = jax.tree.leaves_with_path(found)
    values = {param_path(path): value for path, value in leaves}
    where = section.get("name") or f"the run in {section['workdir']}"

    def value(path, leaf):
        name, module = param_path(path), param_path(path[1:2])
        if module in fresh:
            return leaf
        shape = values[name].shape if name in values else "none"
        if shape != leaf.shape:
            raise ConfigError(
                f"config.pretrained: {name} has the shape {leaf.shape} here and {shape} "
                f"in {where}; name {module} in config.pretrained.fresh if it is to begin "
                "at random"
            )
        return jnp.asarray(values[name], leaf.dtype)

    variables = {"params": params, **model_state}
    state = jax.tree.map_with_path(value, variables)
    return state.pop("params"), state
