"""spyx: spiking layers in Flax NNX, scanned over time."""

import jax
import jax.numpy as jnp
import spyx.nn as snn
from flax import nnx

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def leaky() -> Case:
    """Two layers of leaky units with learned decays and a leaky readout; T = B.

    As `dynamics.spiking`: `jax.grad` is that of the surrogate.
    """
    rngs = nnx.Rngs(0)
    model = snn.Sequential(
        nnx.Linear(4, 6, rngs=rngs),
        snn.LIF((6,), rngs=rngs),
        nnx.Linear(6, 3, rngs=rngs),
        snn.LI((3,), rngs=rngs),
    )
    graphdef, params = nnx.split(model, nnx.Param)

    def loss_fn(params, batch):
        model = nnx.merge(graphdef, params)
        start = jax.tree.map(lambda x: x.astype(jnp.float64), model.initial_state(4))
        out, _ = snn.run(model, batch["x"], start, batch_major=True)
        return cross_entropy(out.mean(1), batch["label"])

    batch = {"x": 2 * normal(1, 4, 4, 4), "label": labels(2, 3, 4)}
    return Case(loss_fn, filled(params), batch)
