"""Data, model, loss and metric of one's own: a curve fitted by an NNX net."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


def load(num: int = 600, noise: float = 0.1) -> dict[str, np.ndarray]:
    """Points of y = sin 3x + x^2 with noise: x (num, 1), and real labels (num,)."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (num, 1))
    label = np.sin(3 * x[:, 0]) + x[:, 0] ** 2
    return {"x": x, "label": label + noise * rng.normal(size=num)}


class Net(nnx.Module):
    """One hidden layer."""

    def __init__(self, num_outputs: int, width: int = 64, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(1, width, rngs=rngs)
        self.outer = nnx.Linear(width, num_outputs, rngs=rngs)

    def __call__(self, x):
        return self.outer(nnx.tanh(self.inner(x)))


def huber(outputs, label, delta: float = 0.5):
    """Squared near zero, linear beyond delta: one number for each example."""
    error = jnp.abs(outputs[:, 0] - label)
    return jnp.where(error < delta, error**2 / 2, delta * (error - delta / 2))


def explained(outputs, label):
    """The share of the labels' variance that the outputs explain: one for all."""
    return 1 - jnp.mean((outputs[:, 0] - label) ** 2) / jnp.var(label)
