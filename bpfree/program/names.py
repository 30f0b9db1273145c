"""Names of marks: which ones a filter keeps, and what marks without one are called."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection

from bpfree.program.tags import Site

NameFilter = Callable[[str], bool] | Collection[str] | None
"""A predicate on names; names with wildcards ("layers/*"), one or several; None: all."""


def chosen_names(names: list[str], wanted: NameFilter, what: str) -> list[str]:
    """All names; or those of a predicate, or of names and glob patterns.

    Raises ValueError for a pattern that no name fits.
    """
    if wanted is None:
        return names
    if callable(wanted):
        return list(filter(wanted, names))
    patterns = {wanted} if isinstance(wanted, str) else set(wanted)
    found = {p: fnmatch.filter(names, p) for p in patterns}
    if unknown := sorted(p for p, fitting in found.items() if not fitting):
        raise ValueError(f"unknown {what} {unknown}; the {what} are {names}")
    return [name for name in names if any(name in each for each in found.values())]


def numbered(sites: list[Site]) -> tuple[Site, ...]:
    """The marks, each with a name of its own.

    A mark without one is named by its place, `node_0`, `node_1`, ...; a name that comes
    again gets `#1`, `#2`, ... Raises ValueError where such a name is another mark's own.
    """
    seen: Counter = Counter()
    named = []
    for site in sites:
        name = site.name or f"node_{seen[None]}"
        seen[None] += site.name is None
        calls = seen[site.kind, name]
        seen[site.kind, name] += 1
        named.append(site._replace(name=f"{name}#{calls}" if calls else name))
    for name, count in Counter(site.name for site in named).items():
        if count > 1:
            raise ValueError(
                f"two marks have the name {name!r} (repeated names are numbered #1, #2, "
                "..., and all kinds of marks share their names): rename one of them."
            )
    return tuple(named)
