"""Hopfield networks, dense or convolutional, for equilibrium propagation."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree import equilibrium
from bpfree.equilibrium import Energy, Relaxation

POOLS: dict[str, Callable[..., equilibrium.Pool]] = {
    "softmax": equilibrium.softmax_pool,
    "average": equilibrium.average_pool,
    "max": equilibrium.max_pool,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Convolutions 3x3 with 2x2 pooling, then dense states, then a softmax readout.

    Attributes:
      num_classes: of the readout, a Dense layer outside of the states.
      hidden: widths of the dense states.
      channels: of the convolutional states, before them; the last convolution has no
        padding, the others keep the size.
      activation: a name in `bpfree.equilibrium.activations.ACTIVATIONS`.
      pool: "softmax" (temperature 1), "average" or "max".
      image: (height, width, channels), if convolutions get rows of pixels.
      sweeps: of the relaxation when predicting, at most.
    """

    num_classes: int
    hidden: Sequence[int] = (256, 256)
    channels: Sequence[int] = ()
    activation: str = "shifted_sigmoid"
    pool: str = "softmax"
    image: Sequence[int] = ()
    sweeps: int = 100

    def objective(self) -> Energy:
        """The energy; weights start truncated normal with deviation 1/sqrt(fan-in)."""
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} is unknown; choose one of {[*POOLS]}")
        layers: list[Any] = []
        for i, width in enumerate(self.channels):
            padding = "SAME" if i + 1 < len(self.channels) else "VALID"
            module = nn.Conv(width, (3, 3), padding=padding, kernel_init=_kernel)
            layers.append((module, POOLS[self.pool]()))
        layers += [nn.Dense(width, kernel_init=_kernel) for width in self.hidden]
        readout = nn.Dense(self.num_classes, kernel_init=_kernel)
        return equilibrium.layered(
            layers,
            activation=self.activation,
            readout=readout,
            image=tuple(self.image),
        )

    def init(self, key: jax.Array, x: jax.Array) -> dict[str, Any]:
        """{"params": ...} for inputs of the shape of x."""
        return {"params": self.objective().init(key, x)}

    def apply(self, variables: Any, x: jax.Array) -> jax.Array:
        """Logits (B, num_classes) of the free equilibrium."""
        energy, params = self.objective(), variables["params"]
        batch = {"x": x, "label": jnp.zeros(x.shape[0], jnp.int32)}
        settings = Relaxation(free=self.sweeps, factor=1.0, tolerance=1e-3)
        return equilibrium.predict(energy, params, batch, settings)


def _kernel(key, shape, dtype=jnp.float32):
    fan_in = 1
    for n in shape[:-1]:
        fan_in *= n
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) / fan_in**0.5
