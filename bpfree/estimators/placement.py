"""Where an estimator stands among optax transformations: first, and bare.

It makes the gradient, so a link that reads gradients, or hides parameters, has to come
after it: `optax.chain(estimator, optax.MultiSteps(optimiser, 4))`.
"""

import sys
from collections.abc import Iterator
from typing import Any

import jax
import optax

# They read the incoming updates before they call what is inside them, and nothing that
# reaches the inside says so: under `jit` neither the updates nor the step have values. So
# the callers are looked at, which is done when a step is traced, and not when it runs.
_READERS = {
    "MultiSteps": "accumulates the updates that reach it, which hold no gradient yet: "
    "only the last of its micro-batches would count",
    "apply_if_finite": "tests the updates that reach it, which hold no gradient yet: it "
    "would let everything pass",
    "mechanize": "takes the updates that reach it for the gradient, which they do not "
    "hold yet: its scale would never move",
    "flatten": "hands on one flat array in place of the parameters, with which the loss "
    "function can do nothing",
}
_LOOKAHEAD = (
    "optax.lookahead has pairs of parameters, and takes a step of its own: gradient, "
    "state = estimator.update(None, state, params.fast, batch=batch), and then "
    "lookahead.update(gradient, ...)"
)

_DEAF = ("sam", "split_real_and_imaginary")
_TO_ITS_RIGHT = (
    "A wrapper that hands no keywords on, such as sam = optax.contrib.sam(...), goes to "
    "its right: optax.chain(estimator, optax.GradientTransformation(sam.init, "
    "sam.update))"
)


def check(params: Any) -> None:
    """ValueError with what to write, if parameters are masked or a wrapper is around."""
    for name in _callers():
        if name == "lookahead":
            raise ValueError(_LOOKAHEAD)
        if name in _DEAF:
            raise ValueError(f"optax.contrib.{name} hands on no batch. {_TO_ITS_RIGHT}")
        if name in _READERS:
            raise ValueError(
                f"optax.{name} around an estimator {_READERS[name]}. Write "
                f"optax.chain(estimator, optax.{name}(optimiser, ...))"
            )
    if isinstance(params, optax.LookaheadParams):
        raise ValueError(_LOOKAHEAD)
    if has_masked(params):
        raise ValueError(
            "an estimator evaluates the loss, which needs all parameters, and some are "
            "masked here. Write optax.chain(estimator, optax.partition({'train': "
            "optimiser, 'freeze': optax.set_to_zero()}, labels)), and likewise with "
            "optax.masked and optax.selective_transform"
        )


def check_batch(batch: Any) -> None:
    """ValueError if there is none, which some wrappers do not hand on."""
    if batch is None:
        needed = "an estimator needs a batch: update(..., batch=batch)."
        raise ValueError(f"{needed} {_TO_ITS_RIGHT}")


def has_masked(params: Any) -> bool:
    """Whether parameters are hidden, as `optax.masked` and `optax.partition` do it."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return any(map(masked, jax.tree.leaves(params, is_leaf=masked)))


def _callers() -> Iterator[str]:
    """Names of the functions and classes of optax that are running."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("optax."):
            yield frame.f_code.co_qualname.partition(".")[0]
        frame = frame.f_back  # type: ignore[assignment]
