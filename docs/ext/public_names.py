"""A builder step: every public name of bpfree is documented.

Each has an entry in the API reference; each function and class has an example that runs
(a test runs them) and says what its arguments mean, in `Args:` or in backticks. What is
missing is a warning, which `sphinx-build -W` turns into a failure.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, get_args

import bpfree
import bpfree.hardware
import bpfree.nodes
import bpfree.training

MODULES = (
    bpfree,
    bpfree.decorrelation,
    bpfree.diagnostics,
    bpfree.equilibrium,
    bpfree.hardware,
    bpfree.nodes,
    bpfree.predictors,
    bpfree.robustness,
    bpfree.training,
)


def public_names(module: ModuleType) -> list[str]:
    """`module.name` for all of `__all__`, or for what the module itself defines."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
    ]
    return [f"{module.__name__}.{name}" for name in names]


def public_values() -> dict[str, Any]:
    """{name: value} of all public names; what has several is under the first one."""
    found: dict[int, tuple[str, Any]] = {}
    for module in MODULES:
        for name in public_names(module):
            value = getattr(module, name.rpartition(".")[2])
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def public_objects() -> dict[str, Any]:
    """The functions and classes among them."""
    return {name: v for name, v in public_values().items() if callable(v)}


def undocumented(documented: Iterable[str]) -> list[str]:
    """Public names that are not among the documented ones, sorted."""
    return sorted(set(public_values()) - set(documented))


_ENTRY = re.compile(r"^\s*((?:\*{0,2}\w+,\s+)*\*{0,2}\w+):", re.M)
_CODE = re.compile(r"`([^`]+)`")


def arguments_in(text: str) -> set[str]:
    """What a docstring explains: entries `a, b: ...`, and words of code in backticks."""
    said = _ENTRY.findall(text) + _CODE.findall(text.partition("Example:")[0])
    return {word for part in said for word in re.findall(r"\w+", part)}


def _arguments_of(value: Any) -> list[str]:
    if isinstance(value, type) and issubclass(value, BaseException):
        return []
    return [name for name in inspect.signature(value).parameters if name != "self"]


def _methods(cls: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items() if isinstance(cls, type) else ():
        if name[0] != "_" and inspect.isfunction(value):
            yield name, value


def _open_choices(value: Any, text: str) -> Iterator[str]:
    """Arguments whose default is one of a few words in quotes, of type str."""
    text = text.partition("Example:")[0]
    for name, parameter in inspect.signature(value).parameters.items():
        types = get_args(parameter.annotation) or (parameter.annotation,)
        if str in types and f'"{parameter.default}"' in text:
            yield name


def faults(name: str, value: Any) -> list[str]:
    """What the docstring of a public function or class lacks, one line each."""
    text = inspect.getdoc(value) or ""
    if isinstance(value, type) and text.startswith(f"{value.__name__}("):
        text = ""  # what NamedTuple writes by itself
    found = [] if text else [f"{name} has no docstring"]
    found += [] if ">>> " in text else [f"{name} has no example"]
    parts = [(name, value, text)]
    for method, function in _methods(value):
        words = inspect.getdoc(function) or ""
        found += [] if words else [f"{name}.{method} has no docstring"]
        parts.append((f"{name}.{method}", function, words))
    for part, function, words in parts:
        missing = set(_arguments_of(function)) - arguments_in(words)
        found += [f"{part} does not explain {arg}" for arg in sorted(missing)]
        if not isinstance(function, type):
            closed = _open_choices(function, words)
            found += [f"{part}: {arg} should be a Literal" for arg in closed]
    return found


def all_faults() -> list[str]:
    found = (faults(name, value) for name, value in public_objects().items())
    return [fault for each in found for fault in each]


def check(app, env) -> None:
    from sphinx.util import logging

    warn = logging.getLogger(__name__).warning
    for name in undocumented(env.get_domain("py").objects):
        warn("%s is in no page of the API reference", name)
    for fault in all_faults():
        warn("%s", fault)


def setup(app) -> dict:
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
