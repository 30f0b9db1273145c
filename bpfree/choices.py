"""Closed choices of arguments: as types, which an editor lists, and checked."""

from typing import Any, Literal, get_args

BaselineName = Literal[
    "clean", "leave_one_out", "batch", "none", "standardise", "centred_ranks"
]
Pairing = Literal["clean", "noisy"]
Derivative = Literal["finite_difference", "jvp"]
Noise = Literal["rademacher", "gaussian"]


def check_choice(what: str, value: Any, choices: Any) -> None:
    """ValueError, with the choices, for a value that is none of them (a Literal's)."""
    if value not in (known := get_args(choices)):
        raise ValueError(f"{what}={value!r} is unknown; choose one of {known}")
