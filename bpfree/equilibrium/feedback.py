r"""Networks whose backward weights are their own: no energy, a vector field.

    h_l = sigma(W_l h_{l-1} + b_l + B_{l+1}^T h_{l+1} - beta dC/dh_l)

With B = W it is the energy's dynamics. B has the shape of W, and begins as

    B = cos(a) W + sin(a) W',    W' another draw of the initialiser,

at an angle a from W; nothing ties them later, but see `homeostasis`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree.equilibrium import linear

SUFFIX = "_feedback"


def init(module: nn.Module, key: jax.Array, like: jax.Array, params, degrees: float):
    """{"kernel": B} for a layer with these forward parameters."""
    other = linear.init(module, key, like)[0]
    a = math.radians(degrees)
    return {
        "kernel": math.cos(a) * params["kernel"] + math.sin(a) * other["kernel"],
    }


def bind(
    module: nn.Module, name: str, params: dict[str, Any], shape: tuple[int, ...]
) -> linear.Linear:
    """The maps of a layer: A h + b forwards, B^T v backwards where there is a B."""
    maps = linear.bind(module, params[name], shape)
    if name + SUFFIX not in params:
        return maps
    back = linear.bind(module, params[name + SUFFIX], shape)
    return maps._replace(transposed=back.transposed)


def check(degrees: float | None) -> None:
    """ValueError for an angle that is not a number between 0 and 180."""
    if degrees is not None and not 0 <= degrees <= 180:
        raise ValueError(
            f"feedback_angle={degrees} must be between 0 and 180 degrees, or None for "
            "symmetric weights"
        )


def refuse(params: dict[str, Any]) -> None:
    """ValueError if there are backward weights."""
    if any(name.endswith(SUFFIX) for name in params):
        raise ValueError(
            "a network with backward weights of its own has no energy: use "
            "bpfree.generalized_equilibrium_propagation"
        )


def drives(dynamics, states) -> tuple[jax.Array, ...]:
    """F(h): the drives of the free network, before the activation."""
    products = dynamics.products(states)
    count = range(len(states))
    return tuple(dynamics.drive(i, states, products, None) for i in count)


def dot(a, b) -> jax.Array:
    """Inner product over all states of an example: (B,)."""
    terms = [(x * y).reshape(x.shape[0], -1).sum(1) for x, y in zip(a, b, strict=True)]
    return jnp.stack(terms).sum(0)
