"""Closed choices of the estimators' arguments, as types: an editor lists them."""

from typing import Literal

BaselineName = Literal[
    "clean", "leave_one_out", "batch", "none", "standardise", "centred_ranks"
]
Pairing = Literal["clean", "noisy"]
Derivative = Literal["finite_difference", "jvp"]
Noise = Literal["rademacher", "gaussian"]
