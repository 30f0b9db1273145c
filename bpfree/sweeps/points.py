"""The points of a sweep, their names, and which of them one program can run."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from bpfree.training import config, config_files
from bpfree.training.names import ConfigError

Overrides = Mapping[str, Any]


class Point(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: a hash of the config, so that points may be added to a sweep later.
      overrides: {dotted entry: value}, what `get_sweep` says.
      config: in JSON form; None if the overrides do not fit.
      error: why not.
    """

    name: str
    overrides: dict[str, Any]
    config: Any
    error: str | None = None


def make_points(
    get_config: Callable[[], ConfigDict], sweep: Sequence[Overrides]
) -> list[Point]:
    """The points of a sweep, equal ones once.

    Args:
      get_config: () -> a fresh config.
      sweep: for each point {"entry" or "section.entry": value}.

    Raises ConfigError: it is no list of such dicts, or empty.
    """
    if not isinstance(sweep, Sequence) or not all(isinstance(p, Mapping) for p in sweep):
        raise ConfigError(
            "get_sweep() must return a list of dicts, such as [{'seed': 0}, {'seed': 1}]"
        )
    if not sweep:
        raise ConfigError("get_sweep() returns no points")
    points = [make_point(get_config(), overrides) for overrides in sweep]
    return list({point.name: point for point in points}.values())


def make_point(base: ConfigDict, overrides: Overrides) -> Point:
    """The point of a config, which is changed."""
    given = dict(overrides)
    try:
        for key, value in given.items():
            section, name = config_files.located(base, key)
            section[name] = value
        made = config.as_json(base)
        config.read(made)
    except (ConfigError, TypeError, ValueError) as error:
        return Point(_digest(given), given, None, str(error))
    identity = {k: v for k, v in made.items() if k not in config.HARMLESS}
    return Point(_digest(identity), given, made)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------ shared programs


def groups(points: Sequence[Point]) -> list[list[Point]]:
    """Points whose configs differ only in the seed and in floats of the chain.

    Whether a program can really take these as arguments is found by tracing it.
    """
    found: dict[str, list[Point]] = {}
    for point in points:
        key = json.dumps(_masked(point.config), sort_keys=True)
        found.setdefault(key, []).append(point)
    return list(found.values())


def _masked(made: dict[str, Any]) -> dict[str, Any]:
    """A config without the numbers that `Group.draft` replaces."""
    fixed = {*config.ENTRIES} - {"chain"}
    chain = {k: v for k, v in made.items() if k not in fixed}  # and its sections
    masked = jax.tree.map(lambda v: "*" if isinstance(v, float) else v, chain)
    return {**made, **masked, "seed": "*"}


def varied(configs: Sequence[Any]) -> dict[str, list[Any]]:
    """{dotted path: value in every config} where the configs of a group differ."""
    paths = [_dotted(path) for path, _ in jax.tree.leaves_with_path(configs[0])]
    rows = zip(paths, *map(jax.tree.leaves, configs), strict=True)
    return {path: v for path, *v in rows if any(other != v[0] for other in v)}


def replaced(value: Any, changes: Mapping[str, Any]) -> Any:
    """Nested dicts and lists with other values at dotted paths, all of which exist."""
    paths = [_dotted(path) for path, _ in jax.tree.leaves_with_path(value)]
    if absent := set(changes) - set(paths):
        raise KeyError(*absent)
    return jax.tree.map_with_path(
        lambda path, old: changes.get(_dotted(path), old), value
    )


def _dotted(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
