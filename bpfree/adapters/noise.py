"""Where the noise of a layer goes: to its output ("logit") or to its parameters.

Noise on a parameter is a node on it, shared by the batch: `bpfree.node(kernel, ...,
batch_axis=None)`. An estimate of B examples with d outputs each has noise power
(d + 1) / (K R), with 1 <= R <= B the coherence of the examples' gradients; shared weight
noise of D entries has (D + 1) / K. For a convolution the outputs are those of all
positions, so kernels smaller than the positions they serve do better perturbed
themselves: "auto" compares the entries of the kernel, C_in k^2 C_out, with those of the
output of one example, C_out H' W'.
"""

import math
from collections.abc import Callable
from typing import Any

CHOICES = ("logit", "weight", "auto")
Noise = str | Callable[[Any], str]


def choose(noise: Noise, module: Any, kernel: tuple[int, ...], output: Any) -> str:
    """Either "logit" or "weight", for one call of a layer.

    Args:
      noise: one of CHOICES, or a function from the module to one of them.
      kernel, output: shapes; the first axis of the output is the batch's.
    """
    choice = noise(module) if callable(noise) else noise
    if choice not in CHOICES:
        raise ValueError(f"noise={choice!r} is unknown; choose one of {CHOICES}")
    if choice != "auto":
        return choice
    return "weight" if math.prod(kernel) < math.prod(output[1:]) else "logit"
