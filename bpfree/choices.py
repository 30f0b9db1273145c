"""Closed choices of arguments: as types, which an editor lists, and checked."""

from collections.abc import Iterable
from typing import Any, Literal

BaselineName = Literal[
    "clean", "leave_one_out", "batch", "none", "standardise", "centred_ranks"
]
Pairing = Literal["clean", "noisy"]
Derivative = Literal["finite_difference", "jvp"]
Noise = Literal["rademacher", "gaussian"]


def check_choice(what: str, value: Any, choices: Iterable[Any]) -> None:
    """ValueError, with the choices, for a value that is none of them."""
    if value not in (known := tuple(choices)):
        raise ValueError(f"{what}={value!r} is unknown; choose one of {known}")
