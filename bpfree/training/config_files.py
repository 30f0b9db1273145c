"""Config files: found by name or path, listed and loaded, every mistake in one line.

A config is a Python file with a function `get_config(arg)`, or a JSON file such as the
config.json of a run. `digits:np` is the file digits.py of the configs that come with
bpfree, and its argument; `my/config.py:np` is a path.
"""

import ast
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import bpfree
from bpfree.training import own
from bpfree.training.names import ConfigError, unknown


class ConfigFile(NamedTuple):
    """A loaded file.

    Attributes:
      path: absolute.
      arg: what follows the colon, or "".
      names: its functions and other values, by name.
    """

    path: Path
    arg: str
    names: Mapping[str, Any]

    def config(self) -> ConfigDict:
        """A fresh config, locked; raises ConfigError."""
        get_config: Callable[..., Any] = self.names["get_config"]
        try:
            made = get_config(self.arg) if self.arg else get_config()
        except Exception as error:
            raise own.config_error(self.path, error) from error
        if not isinstance(made, Mapping) and not isinstance(made, ConfigDict):
            raise ConfigError(
                f"{self.path}: get_config() returns a {type(made).__name__}, not a "
                "ConfigDict"
            )
        made = made if isinstance(made, ConfigDict) else ConfigDict(made)
        return absolute(made, self.path.parent).lock()


def load(text: str) -> ConfigFile:
    """The file that a text such as "digits:np" names; raises ConfigError."""
    name, _, arg = text.partition(":")
    path = find(name)
    if path.suffix == ".json":
        return ConfigFile(path, arg, {"get_config": lambda: _json(path)})
    module = own.run_file(path, f"config_{path.stem}")
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(
            f"{path} has no function get_config(): add one that returns the config"
        )
    return ConfigFile(path, arg, vars(module))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error


# ----------------------------------------------------------------------------- by name


def folder() -> Path:
    """The configs that come with bpfree: in the wheel or in the repository."""
    package = Path(bpfree.__file__).absolute().parent
    places = (package / "configs", package.parent / "configs")
    return next((p for p in places if p.is_dir()), places[0])


def listed() -> dict[str, str]:
    """{name: first line of its docstring} of the configs that come with bpfree."""

    def purpose(path):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        return text.partition("\n")[0]

    return {path.stem: purpose(path) for path in sorted(folder().glob("*.py"))}


def find(name: str) -> Path:
    """The file of a config, by its path, or by its name; raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path.resolve()  # its neighbours are those of the file, not of a link to it
    own = folder() / f"{name}.py"
    if own.is_file():
        return own
    if path.suffix in (".py", ".json") or len(path.parts) > 1:
        raise ConfigError(
            f"--config={name}: there is no such file; bpfree-train --list shows the "
            "configs that come with bpfree"
        )
    raise unknown("--config", name, list(listed()))


# -------------------------------------------------------------------- entries and paths


def located(config: ConfigDict, entry: str) -> tuple[ConfigDict, str]:
    """The section of a dotted entry, and its name there; raises ConfigError."""
    section, (*parents, last) = config, entry.split(".")
    for name in parents:
        section = section.get(name) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or last not in section:
        entries = flatten_dict(config.to_dict(), sep=".")
        raise unknown("config entry", entry, list(entries))
    return section, last


def absolute(config: ConfigDict, folder: Path) -> ConfigDict:
    """The config with texts that begin with ./ or ../ as absolute paths.

    Args:
      config: changed in place.
      folder: where relative ones begin: that of the config's file.
    """

    def placed(value: Any) -> Any:
        relative = isinstance(value, str) and value.startswith(("./", "../"))
        return str((folder / value).resolve()) if relative else value

    with config.unlocked():
        for key in list(config):
            value = config[key]
            if isinstance(value, ConfigDict):
                absolute(value, folder)
            elif (changed := jax.tree.map(placed, value)) != value:
                config[key] = changed
    return config


def look_here() -> None:
    """Modules of the current directory can be imported, as with `python -m`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
