"""Fine-tuning: parameters of an earlier run to begin from.

config.pretrained = {"workdir": "runs/first", "fresh": ("Dense_2",)}
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from bpfree.training import checkpoint
from bpfree.training.names import ConfigError, check_known
from bpfree.training.workdir import WorkdirError

Section = Mapping[str, Any]
_KEYS = ("workdir", "fresh")


def check(section: Any) -> dict[str, Any]:
    """The config's entry `pretrained`, or {}; raises ConfigError.

    Its keys: "workdir", of the run to begin from; "fresh", names of the model's modules
    that begin at random all the same (a readout for other classes, adapters).
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"config.pretrained={section!r} has the wrong type")
    check_known("config.pretrained entry", section, _KEYS)
    for key, value in section.items():
        kind: Any = str if key == "workdir" else (list, tuple)
        if not isinstance(value, kind):
            raise ConfigError(f"config.pretrained.{key}={value!r} has the wrong type")
    if section and not section.get("workdir"):
        raise ConfigError(
            "config.pretrained.workdir is missing: the directory of the run to begin from"
        )
    return dict(section)


def begin(section: Section, params: Any, model_state: Any) -> tuple[Any, Any]:
    """(params, model_state) with the earlier run's values; traceable.

    Raises ConfigError: no such run; a name the model does not have; a module that is
    missing there or has other shapes, and is not said to be fresh.
    """
    if not section:
        return params, model_state
    fresh = tuple(section.get("fresh", ()))
    check_known("config.pretrained: module", fresh, params)
    found = _read(str(Path(section["workdir"]).absolute()))
    where = f"the run in {section['workdir']}"
    state = {
        kind: _graft(where, fresh, values, found["model_state"].get(kind, {}))
        for kind, values in model_state.items()
    }
    return _graft(where, fresh, params, found["params"]), state


def _graft(where: str, fresh: tuple[str, ...], own: Any, found: Any) -> Any:
    """`own` with the values of `found` in all modules but the fresh ones."""

    def module(name: str, values: Any) -> Any:
        if name in fresh:
            return values
        shapes = [jax.tree.map(lambda a: a.shape, v) for v in (values, found.get(name))]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"config.pretrained: {name} has the shapes {shapes[0]} here and "
                f"{shapes[1] or 'none'} in {where}; name it in config.pretrained.fresh "
                "if it is to begin at random"
            )
        return jax.tree.map(lambda a, b: b.astype(a.dtype), values, found[name])

    return {name: module(name, values) for name, values in own.items()}


@functools.cache
def _read(workdir: str) -> Any:
    """{"params": ..., "model_state": ...} of the run's newest checkpoint."""
    if not (Path(workdir) / "checkpoints").is_dir():
        raise ConfigError(
            f"config.pretrained.workdir: {workdir} holds no run with checkpoints"
        )
    try:
        with jax.ensure_compile_time_eval():  # the caller may be traced
            return jax.device_get(checkpoint.read(Path(workdir)))
    except WorkdirError as error:
        raise ConfigError(f"config.pretrained.workdir: {error}") from error
