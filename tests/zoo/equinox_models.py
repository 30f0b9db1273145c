"""Equinox: models of one example under vmap, arrays apart from the rest."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def _case(model, batch) -> Case:
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        logits = jax.vmap(eqx.combine(params, static))(batch["x"])
        return cross_entropy(logits, batch["label"])

    return Case(loss_fn, filled(params), batch)


def mlp() -> Case:
    """`eqx.nn.MLP`, as wide as the batch is long."""
    model = eqx.nn.MLP(4, 4, width_size=4, depth=2, key=jax.random.key(0))
    return _case(model, {"x": normal(1, 4, 4), "label": labels(2, 4, 4)})


class ConvNet(eqx.Module):
    layers: list

    def __init__(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.layers = [
            eqx.nn.Conv2d(3, 4, 3, key=k1),
            eqx.nn.PReLU(),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Conv2d(4, 6, 2, key=k2),
            eqx.nn.GroupNorm(2, 6),
            jax.nn.silu,
            jnp.ravel,
            eqx.nn.Linear(6, 3, key=k3),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def convnet() -> Case:
    """Channels in front; as many channels as examples."""
    batch = {"x": normal(1, 3, 3, 6, 6), "label": labels(2, 3, 3)}
    return _case(ConvNet(jax.random.key(0)), batch)


class Reader(eqx.Module):
    cell: eqx.nn.GRUCell
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        k1, k2, k3 = jax.random.split(key, 3)
        self.cell = eqx.nn.GRUCell(3, 4, key=k1)
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=k2)
        self.norm = eqx.nn.LayerNorm(4)
        self.head = eqx.nn.Linear(4, 3, key=k3)

    def __call__(self, x):  # (T, 3)
        def step(h, u):
            h = self.cell(u, h)
            return h, h

        _, states = jax.lax.scan(step, jnp.zeros(4), x)
        states = states + self.attention(states, states, states)
        return self.head(jax.vmap(self.norm)(states).mean(0))


def recurrent_attention() -> Case:
    """A scan inside vmap, and attention with vmap over time inside; T = B."""
    batch = {"x": normal(1, 4, 4, 3), "label": labels(2, 3, 4)}
    return _case(Reader(jax.random.key(0)), batch)
