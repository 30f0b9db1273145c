"""Your own data, model and estimator: a classifier of two spirals."""

import jax
import jax.numpy as jnp
import numpy as np

import bpfree


def load(num: int = 600, noise: float = 0.02) -> dict[str, np.ndarray]:
    """Points of two spirals, x (num, 2) and label (num,)."""
    rng = np.random.default_rng(0)
    label = np.arange(num) % 2
    turn = np.sqrt(rng.uniform(0.05, 1, num))
    angle = 2 * np.pi * turn + np.pi * label
    x = turn[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    return {"x": x + noise * rng.normal(size=x.shape), "label": label}


def model(num_classes: int, width: int = 64):
    """(init, apply) of a net in plain JAX; a Flax module would do as well."""

    def init(key, x):
        sizes = (x.shape[-1], width, width, num_classes)
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        keys = jax.random.split(key, len(pairs))
        return {
            f"layer_{i}": {
                "w": jax.random.normal(keys[i], (fan_in, fan_out)) * (2 / fan_in) ** 0.5,
                "b": jnp.zeros(fan_out),
            }
            for i, (fan_in, fan_out) in enumerate(pairs)
        }

    def apply(params, x):
        for i in range(len(params)):
            layer = params[f"layer_{i}"]
            x = (jax.nn.relu(x) if i else x) @ layer["w"] + layer["b"]
        return x

    return init, apply


def estimator(loss_fn, *, seed=0, num_samples: int = 16, sigma: float = 0.05):
    """An estimator: any function of the loss function that returns a bpfree one."""
    return bpfree.node_perturbation(
        loss_fn, num_samples=num_samples, sigma=sigma, seed=seed
    )
