"""A builder step: every public name of bpfree has an entry in the API reference.

A name that has none is a warning, which `sphinx-build -W` turns into a failure.
"""

from collections.abc import Iterable
from types import ModuleType

import bpfree

MODULES = (
    bpfree,
    bpfree.decorrelation,
    bpfree.diagnostics,
    bpfree.equilibrium,
    bpfree.predictors,
    bpfree.robustness,
)


def public_names(module: ModuleType) -> list[str]:
    """`module.name` for all of `__all__`, or for what the module itself defines."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
    ]
    return [f"{module.__name__}.{name}" for name in names]


def undocumented(documented: Iterable[str]) -> list[str]:
    """Public names that are not among the documented ones, sorted."""
    wanted = {name for module in MODULES for name in public_names(module)}
    return sorted(wanted - set(documented))


def check(app, env) -> None:
    from sphinx.util import logging

    for name in undocumented(env.get_domain("py").objects):
        logging.getLogger(__name__).warning("%s is in no page of the API reference", name)


def setup(app) -> dict:
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
