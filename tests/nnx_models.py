"""NNX models as anyone would write them (a helper, not a test)."""

from functools import partial

import jax.numpy as jnp
from flax import nnx

from tests.linen_models import SIZE, TOKENS, inputs

FLOAT = {"param_dtype": jnp.float64}


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs, **FLOAT)])
        self.norm = nnx.LayerNorm(4, rngs=rngs, **FLOAT)
        self.out = nnx.Linear(4, 2, rngs=rngs, **FLOAT)

    def __call__(self, x):
        return self.out(self.norm(nnx.tanh(self.layers[0](x))))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs, **FLOAT)
        self.grouped = nnx.Conv(4, 4, (2, 2), feature_group_count=2, rngs=rngs, **FLOAT)
        self.up = nnx.ConvTranspose(4, 2, (2, 2), rngs=rngs, **FLOAT)
        self.out = nnx.Linear(18, 2, rngs=rngs, **FLOAT)

    def __call__(self, x):
        x = nnx.tanh(self.grouped(nnx.tanh(self.first(x))))
        return self.out(nnx.tanh(self.up(x)).reshape(x.shape[0], -1))


class Attention(nnx.Module):
    """Without biases: the key's has no gradient, softmax does not see it."""

    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(
            2, 4, use_bias=False, decode=False, rngs=rngs, **FLOAT
        )
        self.mix = nnx.Einsum("btd,de->bte", (4, 2), rngs=rngs, **FLOAT)
        self.out = nnx.LinearGeneral((3, 2), 2, axis=(1, 2), rngs=rngs, **FLOAT)

    def __call__(self, x):
        return self.out(self.mix(self.attend(x)))


class Recurrent(nnx.Module):
    def __init__(self, rngs, cell=nnx.GRUCell):
        self.rnn = nnx.RNN(cell(2, 3, rngs=rngs, **FLOAT))

    def __call__(self, x):
        return self.rnn(x)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs, **FLOAT)

    def __call__(self, x):
        return nnx.tanh(self.linear(x))


class Remat(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Layer(rngs) for _ in range(2)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.remat(Layer.__call__)(layer, x)
        return x


class Scanned(nnx.Module):
    """Three layers stacked by `nnx.vmap`, run by `nnx.scan`."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return Layer(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        return nnx.scan(
            lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )(x, self.layers)


class Tied(nnx.Module):
    """One layer, called three times, under two names."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs, **FLOAT)
        self.second = self.first

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(nnx.tanh(self.first(x)))))


class Embedded(nnx.Module):
    """Tied input and output embeddings."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs, **FLOAT)
        self.linear = nnx.Linear(4, 4, rngs=rngs, **FLOAT)

    def __call__(self, tokens):
        return self.embed.attend(nnx.tanh(self.linear(self.embed(tokens))))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs, **FLOAT)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs, **FLOAT)

    def __call__(self, x):
        return self.out(self.dropout(nnx.tanh(self.first(x))))


def model(name):
    """A fresh model."""
    return _MAKE[name](nnx.Rngs(0))


_MAKE = {
    "mlp": MLP,
    "cnn": CNN,
    "attention": Attention,
    "gru": Recurrent,
    "lstm": lambda rngs: Recurrent(rngs, nnx.OptimizedLSTMCell),
    "simple": lambda rngs: Recurrent(rngs, partial(nnx.SimpleCell, dtype=jnp.float64)),
    "remat": Remat,
    "scan": Scanned,
    "tied": Tied,
    "embed": Embedded,
    "dropout": Dropped,
}
STEPS = inputs(SIZE, 2)  # as many steps as examples
MODELS = {
    "mlp": (inputs(3), ["layers/0", "norm/bias", "norm/scale", "out"]),
    "cnn": (inputs(5, 5, 2), ["first", "grouped", "up", "out"]),
    "attention": (
        inputs(3, 4),
        [f"attend/{part}" for part in ("query", "key", "value", "out")] + ["mix", "out"],
    ),
    "gru": (STEPS, ["rnn/cell/dense_i", "rnn/cell/dense_h"]),
    "lstm": (STEPS, ["rnn/cell/dense_i"]),
    "simple": (STEPS, ["rnn/cell/dense_i"]),
    "remat": (inputs(4), ["layers/0/linear", "layers/1/linear"]),
    "scan": (inputs(4), ["layers/linear"]),
    "tied": (inputs(4), ["first", "first#1", "first#2"]),
    "embed": (TOKENS, ["embed", "linear", "embed#1"]),
}
