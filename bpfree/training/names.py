"""Names and keyword arguments of a config, checked before anything is traced."""

import contextlib
import difflib
import functools
import importlib
import inspect
import pkgutil
import sysconfig
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A config that cannot run; the message says what to change.

    Example:
        >>> from bpfree import training
        >>> try:
        ...     training.fit({"sead": 0}, "runs/never_made")
        ... except training.ConfigError as error:
        ...     print(type(error).__name__)
        ConfigError
    """


@contextlib.contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Errors of all kinds (Flax's, JAX's, the user's own) as a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise ConfigError(f"{what}: {kind}: {error}{own_line(error)}") from error


_NOT_OWN = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"), "<")


def own_line(error: Exception) -> str:
    """ " (mine.py, line 3)": the last line of one's own code that led to an error."""
    found = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_OWN)
        and "site-packages" not in frame.filename
    ]
    return f" ({found[-1].filename}, line {found[-1].lineno})" if found else ""


def unknown(what: str, name: Any, choices: Collection[str]) -> ConfigError:
    """The error for a name that is none of `choices`, with the closest ones first."""
    close = difflib.get_close_matches(str(name), choices)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    known = (
        f"The choices are: {', '.join(sorted(choices))}" if choices else "None is taken"
    )
    return ConfigError(f"{what} {name!r} is unknown.{hint} {known}")


def check_known(what: str, names: Collection[Any], choices: Collection[str]) -> None:
    """Raises `unknown` for the first of the names that is none of `choices`."""
    for name in names:
        if name not in choices:
            raise unknown(what, name, choices)


def imported(module: str, what: str, package: str, extra: str) -> types.ModuleType:
    """A module that an extra serves; ConfigError with how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs {package} ({error}): pip install 'bpfree[{extra}]'"
        ) from error


def member(package: types.ModuleType, name: str, what: str) -> types.ModuleType:
    """The module `name` of a package such as `bpfree.data`."""
    choices = [m.name for m in pkgutil.iter_modules(package.__path__)]
    if name not in choices:
        raise unknown(what, name, choices)
    return importlib.import_module(f"{package.__name__}.{name}")


def call(
    constructor: Callable[..., Any],
    kwargs: Mapping[str, Any],
    where: str,
    given: Mapping[str, Any] = types.MappingProxyType({}),
) -> Any:
    """`constructor(**given, **kwargs)`, with names and plain types checked.

    Args:
      kwargs: what the config says.
      where: the place in the config, for messages.
      given: arguments the launcher supplies; a config may not name them.

    Raises ConfigError for an unknown, missing or ill-typed argument, or one that the
    constructor itself refuses.
    """
    _check(constructor, kwargs, where, given)
    try:
        signature_of(constructor).bind(**given, **kwargs)
        return constructor(**given, **kwargs)
    except Exception as error:  # of all kinds: it may be the user's program
        usual = isinstance(error, (TypeError, ValueError))
        kind = "" if usual else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {kind}{error}{own_line(error)}") from error


def bind(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any],
    where: str,
    positional: Collection[str],
    given: Mapping[str, Any] = types.MappingProxyType({}),
) -> Callable[..., Any]:
    """The function with keyword arguments bound, which are checked as those of `call`.

    Args:
      positional: names of the parameters it will be called with; a config may not.
    """
    _check(function, kwargs, where, (*positional, *given))
    return functools.partial(function, **given, **kwargs) if given or kwargs else function


def _check(constructor, kwargs, where: str, given: Collection[str]) -> None:
    """ConfigError for a name or plain type that the constructor does not take."""
    parameters = signature_of(constructor).parameters
    choices = [n for n, p in parameters.items() if p.kind in _NAMED and n not in given]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_known(f"{where}: argument", kwargs, choices)
    _check_types(constructor, parameters, kwargs, where)


def signature_of(constructor: Callable[..., Any]) -> inspect.Signature:
    """Its parameters, also where the class of a class (NNX has one) hides them."""
    if not inspect.isclass(constructor) or type(constructor).__call__ is type.__call__:
        return inspect.signature(constructor)
    _, *parameters = inspect.signature(constructor.__init__).parameters.values()
    return inspect.Signature(parameters)


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _check_types(constructor, parameters, kwargs, where) -> None:
    hints = _hints(constructor)
    for name, value in kwargs.items():
        if name not in hints or _accepts(hints[name], value):
            continue
        if name in parameters and parameters[name].default is value:
            continue
        if typing.get_origin(hints[name]) is typing.Literal:
            choices = list(map(str, typing.get_args(hints[name])))
            raise unknown(f"{where}: argument {name}", value, choices)
        hint = inspect.formatannotation(hints[name])
        raise ConfigError(
            f"{where}: argument {name}={value!r} is a {type(value).__name__}, but "
            f"{name} is declared as {hint}"
        )


def _hints(constructor) -> dict[str, Any]:
    target = constructor
    if inspect.isclass(constructor):
        fields = hasattr(constructor, "_fields")  # of a NamedTuple, made by __new__
        target = constructor.__new__ if fields else constructor.__init__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}


def _accepts(hint: Any, value: Any) -> bool:
    """False only where a plain value surely does not fit; all else is let through."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if not isinstance(value, (bool, int, float, str, type(None))):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(part, value) for part in typing.get_args(hint))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if getattr(kind, "_is_protocol", False):
        return not isinstance(value, (bool, int, float, type(None)))
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, int) and kind in (float, complex):
        return True
    return isinstance(value, kind)
