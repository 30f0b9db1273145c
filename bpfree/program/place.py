"""Where examples stand in a value; see `axes`."""

from typing import NamedTuple


class Place(NamedTuple):
    """The axis on which examples stand, and how they are folded into it."""

    axis: int
    outer: int = 1
    inner: int = 1


LOST = None
