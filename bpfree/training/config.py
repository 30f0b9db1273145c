"""What a config holds, checked; and whether two runs are the same one."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bpfree.training import frozen, losses, objective, pretrained
from bpfree.training.names import ConfigError, check_known, unknown

# May differ when a run is resumed.
HARMLESS = ("log_every", "checkpoint_every", "diagnostics", "mesh")


class Settings(NamedTuple):
    """A config as plain values.

    Attributes:
      seed: of the initialisation, the order of the data and the estimator.
      data: {"name": a set of `bpfree.data`, **arguments of its `load`}, and optionally
        "loader": "device" (the default) or "grain", for training parts that do not fit.
        A name "./mine.py:load" is a function of the user's, "./mine.npz" a file, see
        `data/arrays.py`. A name alone may stand in place of the dict.
      model: {"name": module of `bpfree.models`, **fields of its `Model`}; or a name such
        as "./mine.py:Model", see `training/model.py`.
      chain: (name, kwargs) pairs; kwargs is a dict, or the name of a section.
      batch_size: examples in a step, B.
      num_steps: updates in all.
      log_every: updates between two log points.
      checkpoint_every: updates between two checkpoints, a multiple of log_every.
      sections: the config's other entries, named in `chain`: {section: kwargs}.
      diagnostics: {"every": updates between two looks at the estimator's alignment with
        the gradient, 0 for none, "repeats": estimates in a look}; optional.
      mesh: the devices, "sample:4,data:2" for instance; optional, "" is one device.
      pretrained: values to begin from, of an earlier run or of a function of the user's,
        see `training/pretrained.py`; optional.
      frozen: names of the model's modules that never move; optional.
      objective: a loss for each example or step, and where layers have their nodes, see
        `training/objective.py`; optional.
      loss, metrics: what is minimised, the cross-entropy by default, and what is measured
        on validation and test, accuracy by default, see `training/losses.py`. A loss is
        {"name": ..., **arguments} or a name alone, metrics are one or more of these.
    """

    seed: int
    data: dict[str, Any]
    model: dict[str, Any]
    chain: Sequence[Any]
    batch_size: int
    num_steps: int
    log_every: int
    checkpoint_every: int
    sections: dict[str, dict[str, Any]]
    diagnostics: dict[str, int]
    mesh: str = ""
    pretrained: dict[str, Any] = {}
    frozen: tuple[str, ...] = ()
    objective: dict[str, str] = {}
    loss: dict[str, Any] = {}
    metrics: tuple[dict[str, Any], ...] = ()


_TYPES: dict[str, Any] = {
    "seed": int,
    "data": dict,
    "model": dict,
    "chain": (list, tuple),
    "batch_size": int,
    "num_steps": int,
    "log_every": int,
    "checkpoint_every": int,
}
_DIAGNOSTICS = {"every": 0, "repeats": 8}


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as nested dicts of plain values, references resolved."""
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


def read(config: ConfigDict | Mapping[str, Any]) -> Settings:
    """Check a config's entries and their types; raises ConfigError."""
    values = plain(config)
    for key in ("data", "model"):
        if isinstance(values.get(key), str):
            values[key] = {"name": values[key]}
    diagnostics = _read_diagnostics(values.pop("diagnostics", {}))
    begin = pretrained.check(values.pop("pretrained", {}))
    still = frozen.check(values.pop("frozen", ()))
    minimised = objective.check(values.pop("objective", {}))
    loss = losses.read_loss(values.pop("loss", {}))
    metrics = losses.read_metrics(values.pop("metrics", ()))
    mesh = values.pop("mesh", "")
    if not isinstance(mesh, str):
        raise ConfigError(f"config.mesh={mesh!r} must be text, such as 'sample:4,data:2'")
    extra = {k: v for k, v in values.items() if k not in _TYPES}
    named = set(_strings([values.get("chain", ()), extra]))
    for key, value in extra.items():
        if key not in named or not isinstance(value, dict):
            raise unknown("config entry (or section that no link names)", key, _TYPES)
    for key, kind in _TYPES.items():
        if key not in values:
            raise ConfigError(f"config.{key} is missing; the entries are {list(_TYPES)}")
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            raise ConfigError(f"config.{key}={values[key]!r} has the wrong type")
    _check_counts(values)
    _check_numbers(values, "config")
    for key in ("data", "model"):
        if not isinstance(values[key].get("name"), str):
            raise ConfigError(f"config.{key}.name is missing: which one is it to be?")
    chosen = {k: values[k] for k in _TYPES}
    return Settings(
        **chosen,
        sections=extra,
        diagnostics=diagnostics,
        mesh=mesh,
        pretrained=begin,
        frozen=still,
        objective=minimised,
        loss=loss,
        metrics=metrics,
    )


def _read_diagnostics(section: Any) -> dict[str, int]:
    if not isinstance(section, Mapping):
        raise ConfigError(f"config.diagnostics={section!r} has the wrong type")
    check_known("config.diagnostics entry", section, _DIAGNOSTICS)
    for key, value in section.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(
                f"config.diagnostics.{key}={value!r} must be a whole number, 0 or more"
            )
    read = {**_DIAGNOSTICS, **section}
    if read["every"] and read["repeats"] < 2:
        raise ConfigError("config.diagnostics.repeats must be at least 2, for a spread")
    return read


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


def _check_counts(values: Mapping[str, Any]) -> None:
    for key in ("batch_size", "num_steps", "log_every", "checkpoint_every"):
        if values[key] < 1:
            raise ConfigError(f"config.{key}={values[key]} must be at least 1")
    if values["checkpoint_every"] % values["log_every"]:
        raise ConfigError(
            f"config.checkpoint_every={values['checkpoint_every']} must be a multiple of "
            f"config.log_every={values['log_every']}: state is saved at log points"
        )


_NOT_NEGATIVE = (
    "learning_rate",
    "init_value",
    "peak_value",
    "end_value",
    "sigma",
    "seed",
)


def _check_numbers(value: Any, path: str) -> None:
    """Refuse what can only be a mistake: nan, negative rates, 3e9 samples."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_numbers(inner, f"{path}[{i}]")
    elif isinstance(value, (int, float)):
        name = path.rpartition(".")[2]
        if value != value:
            raise ConfigError(f"{path}={value} is not a number")
        if name in _NOT_NEGATIVE and not 0 <= value < math.inf:
            problem = "negative" if value < 0 else "infinite"
            raise ConfigError(f"{path}={value} must not be {problem}")
        if name == "num_samples" and value >= 2**31:
            raise ConfigError(f"{path}={value} must be below 2**31")


# ----------------------------------------------------------------------- the same run?


def as_json(config: ConfigDict | Mapping[str, Any]) -> Any:
    """The config as it reads back from config.json (tuples are lists there)."""
    try:
        return json.loads(json.dumps(plain(config)))
    except TypeError as error:
        raise ConfigError(f"a config holds plain values only: {error}") from error


def differences(old: Any, new: Any, path: str = "config") -> list[str]:
    """Dotted keys at which two configs in JSON form differ, harmless ones left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if path != "config" or k not in HARMLESS]
        absent = object()
        pairs = [(f"{path}.{k}", old.get(k, absent), new.get(k, absent)) for k in keys]
        return [key for p, a, b in pairs for key in differences(a, b, p)]
    return [] if type(old) is type(new) and old == new else [path]
