"""What a config holds, checked; and whether two runs are the same one."""

import json
import math
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from bpfree.training import losses, pretrained
from bpfree.training.names import ConfigError, call, config_errors, unknown
from bpfree.training.objective import Objective

# May differ when a run is resumed.
HARMLESS = ("log_every", "checkpoint_every", "diagnostics", "mesh")


class Diagnostics(NamedTuple):
    """Looks at how the estimator's gradient points: updates between two of them, 0 for
    none, and estimates in each."""

    every: int = 0
    repeats: int = 8


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
      diagnostics: {"every": ..., "repeats": ...}, see `Diagnostics`; optional.
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
    chain: tuple[Any, ...]
    batch_size: int
    num_steps: int
    log_every: int
    checkpoint_every: int
    sections: dict[str, dict[str, Any]]
    diagnostics: Diagnostics = Diagnostics()
    mesh: str = ""
    pretrained: dict[str, Any] = {}
    frozen: tuple[str, ...] = ()
    objective: Objective = Objective()
    loss: dict[str, Any] = {}
    metrics: tuple[dict[str, Any], ...] = ()


_KINDS = typing.get_type_hints(Settings)
ENTRIES = [name for name in Settings._fields if name != "sections"]
_REQUIRED = [name for name in ENTRIES if name not in Settings._field_defaults]


def plain(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as nested dicts of plain values, references resolved."""
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


def read(config: ConfigDict | Mapping[str, Any]) -> Settings:
    """Check a config's entries and their types; raises ConfigError."""
    values = plain(config)
    values |= {
        key: losses.named_section(values[key], f"config.{key}")
        for key in ("data", "model")
        if key in values
    }
    values["pretrained"] = pretrained.check(values.get("pretrained", {}))
    values["loss"] = losses.read_loss(values.get("loss", {}))
    values["metrics"] = losses.read_metrics(values.get("metrics", ()))
    for key in ENTRIES:  # before the sections, which the chain names
        if key in values:
            values[key] = _typed(key, values[key])
        elif key in _REQUIRED:
            raise ConfigError(f"config.{key} is missing; required are {_REQUIRED}")
    values["sections"] = _sections(values)
    settings = Settings(**values)
    _check_counts(settings)
    _check_numbers(settings)
    return settings


def _sections(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that the chain names, taken out of the others."""
    found = {k: values.pop(k) for k in list(values) if k not in ENTRIES}
    with config_errors("config"):
        leaves = jax.tree.leaves([values.get("chain", ()), found])
    named = {leaf for leaf in leaves if isinstance(leaf, str)}
    for key, value in found.items():
        if key not in named or not isinstance(value, dict):
            what = "config entry (or section that no link names)"
            raise unknown(what, key, ENTRIES)
    return found


def _typed(key: str, value: Any) -> Any:
    """The value of an entry; of one with entries of its own, those."""
    kind = typing.get_origin(_KINDS[key]) or _KINDS[key]
    nested = hasattr(kind, "_fields")
    accepted: Any = dict if nested else (list, tuple) if kind is tuple else kind
    hints = typing.get_args(_KINDS[key])
    fits = isinstance(value, accepted) and not isinstance(value, bool)
    if fits and kind is tuple and hints[0] is str:
        fits, value = all(isinstance(v, str) for v in value), tuple(value)
    if not fits:
        wanted = _WANTED[dict if nested else kind]
        raise ConfigError(f"config.{key}={value!r} has the wrong type: {wanted}")
    return call(kind, value, f"config.{key}") if nested else value


_WANTED = {
    dict: "a dict is wanted",
    int: "a whole number is wanted",
    str: "text is wanted, such as 'sample:4,data:2'",
    tuple: "a list is wanted",
}


def _check_counts(settings: Settings) -> None:
    for key in ("batch_size", "num_steps", "log_every", "checkpoint_every"):
        if (count := getattr(settings, key)) < 1:
            raise ConfigError(f"config.{key}={count} must be at least 1")
    if settings.checkpoint_every % settings.log_every:
        raise ConfigError(
            f"config.checkpoint_every={settings.checkpoint_every} must be a multiple of "
            f"config.log_every={settings.log_every}: state is saved at log points"
        )
    every, repeats = settings.diagnostics
    for key, count in settings.diagnostics._asdict().items():
        if count < 0:
            raise ConfigError(f"config.diagnostics.{key}={count} must be at least 0")
    if every and repeats < 2:
        raise ConfigError("config.diagnostics.repeats must be at least 2, for a spread")


_NOT_NEGATIVE = "learning_rate init_value peak_value end_value sigma seed".split()


def _check_numbers(settings: Settings) -> None:
    """Refuse what can only be a mistake: nan, negative rates, 3e9 samples."""
    values = settings._asdict()
    values |= values.pop("sections")
    with config_errors("config"):
        leaves = jax.tree.leaves_with_path(values)
    for keys, value in leaves:
        if not isinstance(value, (int, float)):
            continue
        path = "config" + "".join(map(_step, keys))
        name = path.rpartition(".")[2]
        if value != value:
            raise ConfigError(f"{path}={value} is not a number")
        if name in _NOT_NEGATIVE and not 0 <= value < math.inf:
            problem = "negative" if value < 0 else "infinite"
            raise ConfigError(f"{path}={value} must not be {problem}")
        if name == "num_samples" and value >= 2**31:
            raise ConfigError(f"{path}={value} must be below 2**31")


def _step(key: Any) -> str:
    if isinstance(key, jax.tree_util.SequenceKey):
        return f"[{key.idx}]"
    return "." + jax.tree_util.keystr((key,), simple=True)


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
