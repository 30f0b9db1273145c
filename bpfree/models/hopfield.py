"""Hopfield networks, dense or convolutional, for equilibrium propagation."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree import equilibrium
from bpfree.choices import check_choice
from bpfree.equilibrium import Energy, Relaxation
from bpfree.equilibrium.layered import Activation

Pool = Literal["softmax", "average", "max"]
POOLS: dict[str, Callable[[float], equilibrium.Pool]] = {
    "softmax": lambda temperature: equilibrium.softmax_pool(2, temperature),
    "average": lambda temperature: equilibrium.average_pool(2),
    "max": lambda temperature: equilibrium.max_pool(2),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Convolutions 3x3 with 2x2 pooling, then dense states, then a softmax readout.

    Attributes:
      num_classes: of the readout, a Dense layer outside of the states.
      hidden: widths of the dense states.
      channels: of the convolutional states, before them.
      activation: a name in `bpfree.equilibrium.activations.ACTIVATIONS`.
      pool: "softmax", "average" or "max".
      image: (height, width, channels), if convolutions get rows of pixels.
      sweeps: of the relaxation when predicting, at most.
      padded, pooled: which convolutions keep the size, and which pool; by default all but
        the last, and all.
      temperature: of the softmax pooling.
      feedback: by what the drive from each layer above is scaled, in (0, 1].
    """

    num_classes: int
    hidden: Sequence[int] = (256, 256)
    channels: Sequence[int] = ()
    activation: Activation = "shifted_sigmoid"
    pool: Pool = "softmax"
    image: Sequence[int] = ()
    sweeps: int = 100
    padded: Sequence[bool] = ()
    pooled: Sequence[bool] = ()
    temperature: float = 1.0
    feedback: float = 1.0

    def objective(self) -> Energy:
        """The energy; weights start truncated normal with deviation 1/sqrt(fan-in)."""
        check_choice("pool", self.pool, Pool)
        pool = POOLS[self.pool](self.temperature)
        layers: list[Any] = []
        for width, padded, pooled in self.convolutions():
            padding = "SAME" if padded else "VALID"
            module = nn.Conv(width, (3, 3), padding=padding, kernel_init=_kernel)
            layers.append((module, pool) if pooled else module)
        layers += [nn.Dense(width, kernel_init=_kernel) for width in self.hidden]
        readout = nn.Dense(self.num_classes, kernel_init=_kernel)
        return equilibrium.layered(
            layers,
            activation=self.activation,
            readout=readout,
            feedback=self.feedback,
            image=tuple(self.image),
        )

    def convolutions(self) -> list[tuple[int, bool, bool]]:
        """(channels, padded, pooled) of each; ValueError if they are not as many."""
        depth = len(self.channels)
        padded = self.padded or [i + 1 < depth for i in range(depth)]
        pooled = self.pooled or [True] * depth
        if not depth == len(padded) == len(pooled):
            raise ValueError(
                f"{depth} channels, {len(padded)} padded, {len(pooled)} pooled: give one "
                "of each for every convolution"
            )
        return list(zip(self.channels, padded, pooled, strict=True))

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
    fan_in = math.prod(shape[:-1])
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) / fan_in**0.5
