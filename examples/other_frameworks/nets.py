"""Nets of Haiku and Equinox, with batch normalisation and dropout, for the launcher.

A model of the launcher is any object with two methods,

    init(key, x) -> {"params": ..., other variables}     apply(variables, x) -> outputs

and what training changes besides the parameters comes to the objective in
`batch["state"]`, and goes back as its second result.
"""

import equinox as eqx
import haiku as hk
import jax
import optax

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class HaikuNet:
    """One hidden layer of Haiku."""

    def __init__(self, num_classes: int, width: int = 64):
        def forward(x, training):
            h = hk.Linear(width)(hk.Flatten()(x))
            h = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(h, training))
            h = hk.dropout(hk.next_rng_key(), 0.1, h) if training else h
            return hk.Linear(num_classes)(h)

        self.net = hk.transform_with_state(forward)

    def init(self, key, x):
        params, state = self.net.init(key, x, True)
        return {"params": params, "haiku": state}

    def apply(self, variables, x):
        params, state = variables["params"], variables["haiku"]
        return self.net.apply(params, state, None, x, False)[0]


def haiku_loss(params, batch, key, model):
    """config.loss: the losses (B,) in training, and the new state."""
    state = batch["state"]["haiku"]
    outputs, state = model.net.apply(params, state, key, batch["x"], True)
    return cross_entropy(outputs, batch["label"]), {"haiku": state}


class Block(eqx.Module):
    """One hidden layer of Equinox, for one example."""

    inner: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    outer: eqx.nn.Linear

    def __init__(self, inputs: int, width: int, outputs: int, key):
        first, second = jax.random.split(key)
        self.inner = eqx.nn.Linear(inputs, width, key=first)
        self.norm = eqx.nn.BatchNorm(width, "batch", mode="batch")
        self.outer = eqx.nn.Linear(width, outputs, key=second)

    def __call__(self, x, state):
        h, state = self.norm(self.inner(x.ravel()), state)
        return self.outer(jax.nn.relu(h)), state


class EquinoxNet:
    """The block over a batch: its inexact arrays are the parameters."""

    def __init__(self, num_classes: int, width: int = 64, inputs: int = 64):
        self.make = lambda key: eqx.nn.make_with_state(Block)(
            inputs, width, num_classes, key
        )
        made, _ = self.make(jax.random.key(0))
        self.static = eqx.filter(made, eqx.is_inexact_array, inverse=True)

    def init(self, key, x):
        made, state = self.make(key)
        return {"params": eqx.filter(made, eqx.is_inexact_array), "equinox": state}

    def apply(self, variables, x):
        return self.run(variables["params"], variables["equinox"], x, training=False)[0]

    def run(self, params, state, x, training):
        block = eqx.nn.inference_mode(eqx.combine(params, self.static), not training)
        axes = {"in_axes": (0, None), "out_axes": (0, None), "axis_name": "batch"}
        return jax.vmap(block, **axes)(x, state)


def equinox_loss(params, batch, model):
    """config.loss: the losses (B,) in training, and the new state."""
    state = batch["state"]["equinox"]
    outputs, state = model.run(params, state, batch["x"], training=True)
    return cross_entropy(outputs, batch["label"]), {"equinox": state}
