"""Where examples stand in a value; see `axes`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """The axis on which examples stand, and how they are folded into it."""

    axis: int
    outer: int = 1
    inner: int = 1


class Parts(NamedTuple):
    """Examples on several axes, major to minor: `sizes` multiply to the batch.

    A batch that was reshaped to parts, of which each has its examples side by side:
    micro-batches, or a share for each device.
    """

    places: tuple[Place, ...]
    sizes: tuple[int, ...]


LOST = None

Somewhere = Place | Parts | None


def axes_of(place: Place | Parts) -> tuple[int, ...]:
    if isinstance(place, Parts):
        return tuple(at.axis for at in place.places)
    return (place.axis,)


def on_axes(place: Somewhere, fn: Callable[[Place, int], Somewhere], batch: int):
    """`fn(place, examples)` for each axis, brought together; lost where one is lost."""
    if not isinstance(place, Parts):
        return place and fn(place, batch)
    found = [fn(at, n) for at, n in zip(place.places, place.sizes, strict=True)]
    return together(found, place.sizes)


def together(found: list[Somewhere], sizes: Sequence[int]) -> Somewhere:
    """One place of examples on several axes, major to minor; on one where they fold."""
    parts: list[tuple[Place, int]] = []
    for at, size in zip(found, sizes, strict=True):
        if at is LOST:
            return LOST
        mine = (at.places, at.sizes) if isinstance(at, Parts) else ((at,), (size,))
        for minor, n in zip(*mine, strict=True):
            if not (parts and parts[-1][0].axis == minor.axis):
                parts.append((minor, n))
                continue
            major, m = parts.pop()
            if (major.inner, minor.outer) != (n * minor.inner, major.outer * m):
                return LOST
            parts.append((minor._replace(outer=major.outer), m * n))
    places, counts = zip(*parts, strict=True)
    if len(set(p.axis for p in places)) < len(places):
        return LOST
    return places[0] if len(places) == 1 else Parts(places, counts)
