"""More of Equinox: `vmap` inside `vmap`, statistics by a collective over it."""

import equinox as eqx
import jax

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def _equinox(make, batch):
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    shapes, static = eqx.partition(shapes, is_shape)

    def loss_fn(params, batch):
        model = eqx.combine(params, static)
        return cross_entropy(jax.vmap(model)(batch["x"]), batch["label"])

    return Case(loss_fn, filled(shapes), batch)


class Transformer(eqx.Module):
    table: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norms: list
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.table = eqx.nn.Embedding(7, 8, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
        self.norms = [eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(8)]
        self.mlp = eqx.nn.MLP(8, 8, 6, 1, key=keys[2])
        self.head = eqx.nn.Linear(8, 3, key=keys[3])

    def __call__(self, ids):
        x = jax.vmap(self.table)(ids)
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        return self.head(x.mean(0))


def nested_vmap() -> Case:
    """`vmap` over tokens inside `vmap` over examples, as many of both."""
    batch = {"x": labels(1, 7, 4, 4), "label": labels(2, 3, 4)}
    return _equinox(Transformer, batch)


class Normalised(eqx.Module):
    layers: list
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.layers = [eqx.nn.Linear(5, 6, key=keys[0]), eqx.nn.Linear(6, 3, key=keys[1])]
        self.norm = eqx.nn.BatchNorm(6, axis_name="batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.layers[0](x), state)
        return self.layers[1](jax.nn.relu(x)), state


def batch_norm() -> Case:
    """Statistics by a collective over the `vmap`; new ones are its aux."""
    model, state = eqx.nn.make_with_state(Normalised)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    batch = {"x": normal(1, 4, 5), "label": labels(2, 3, 4)}

    def loss_fn(params, batch):
        model = eqx.combine(params, static)
        mapped = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        logits, new = mapped(batch["x"], state)
        return cross_entropy(logits, batch["label"]), eqx.filter(new, eqx.is_array)

    return Case(loss_fn, filled(params), batch)
