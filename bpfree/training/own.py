"""Names of one's own in a config: a model, data, an estimator.

`"./nets.py:CNN"` is the name CNN in a file, `"my_lab.nets:CNN"` in a module that Python
can import. In a config's file ./ is the folder of that file; on the command line, and in
a dict given to `fit`, it is the current directory.
"""

import functools
import importlib
import importlib.util
import sys
import traceback
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpfree.training.names import ConfigError, config_errors, unknown


def is_own(name: str) -> bool:
    """Whether a config's name says where it is to be found, as "./nets.py:CNN" does."""
    return ":" in name


def find(name: str, where: str) -> Callable[..., Any]:
    """What a name such as "./nets.py:CNN" stands for.

    Args:
      where: the place in the config, for messages.

    Raises ConfigError: no such file, module or name; or an error of the file, with its
    line.
    """
    place, _, member = name.rpartition(":")
    if place.endswith(".py") or "/" in place:
        module = _file(Path(place).resolve(), where)
    else:
        with config_errors(f"{where}: cannot import {place!r}"):
            module = importlib.import_module(place)
    found = getattr(module, member, None)
    if not callable(found):
        callables = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
        raise unknown(f"{where}: function or class in {place}", member, callables)
    return found


def run_file(path: Path, name: str) -> types.ModuleType:
    """The module of a Python file, which may import its neighbours, as a script may.

    Raises ConfigError with the line that failed.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        sys.modules[name] = module  # dataclasses and type hints look there
        spec.loader.exec_module(module)
    except Exception as error:  # of all kinds: it is the user's program
        raise config_error(path, error) from error
    return module


def config_error(path: Path, error: Exception) -> ConfigError:
    """The error of a user's file, with the last line of the file that led to it."""
    if isinstance(error, ConfigError):
        return error
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path)
    ]
    line, what = lines[-1] if lines else None, f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, what = error.lineno, f"{type(error).__name__}: {error.msg}"
    return ConfigError(f"{path}, line {line}: {what}" if line else f"{path}: {what}")


@functools.cache
def _file(path: Path, where: str) -> types.ModuleType:
    if not path.is_file():
        raise ConfigError(f"{where}: there is no file {path}")
    return run_file(path, f"own_{path.stem}_{zlib.crc32(str(path).encode())}")
