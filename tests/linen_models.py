"""Linen models as anyone would write them (a helper, not a test)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

FLOAT = {"param_dtype": jnp.float64}
SIZE = 3


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(force_float32_reductions=False, **FLOAT)(
            nn.tanh(nn.Dense(4, **FLOAT)(x))
        )
        return nn.Dense(2, **FLOAT)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 3), strides=2, **FLOAT)(x))
        x = nn.tanh(nn.Conv(4, (2, 2), feature_group_count=2, **FLOAT)(x))
        x = nn.tanh(nn.ConvTranspose(2, (2, 2), **FLOAT)(x))
        x = nn.tanh(nn.ConvLocal(2, (2, 2), **FLOAT)(x))
        return nn.Dense(2, **FLOAT)(x.reshape(x.shape[0], -1))


class Attention(nn.Module):
    """Without biases: the key's has no gradient, softmax does not see it."""

    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(2, use_bias=False, **FLOAT)(x, x)
        return nn.Einsum((4, 2), "btd,de->bte", **FLOAT)(x)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.GRUCell(3, **FLOAT))(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.tanh(nn.Dense(4, **FLOAT)(x)), None


class Scanned(nn.Module):
    """Three layers in one scan, and each rematerialised."""

    layer: type[nn.Module] = Layer

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            self.layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return layers()(x, None)[0]


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x, _ = nn.remat(Layer)()(x)
        return x


class Ensemble(nn.Module):
    """`nn.vmap` over members; the batch is no longer the first axis of the node."""

    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=1,
            axis_size=2,
        )
        return members()(x, None)[0]


class Tied(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4, name="dense", **FLOAT)
        return dense(nn.tanh(dense(x)))


class Embedded(nn.Module):
    """Tied input and output embeddings."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(5, 4, name="embed", **FLOAT)
        x = nn.tanh(nn.Dense(4, name="dense", **FLOAT)(embed(tokens)))
        return embed.attend(x)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(4, **FLOAT)(x))
        return nn.Dense(2, **FLOAT)(nn.Dropout(0.5, deterministic=False)(x))


def inputs(*shape):
    return jax.random.normal(jax.random.key(3), (SIZE, *shape), jnp.float64)


TOKENS = jnp.asarray([[0, 1], [2, 3], [4, 0]])
MODELS = {
    "mlp": (
        MLP(),
        inputs(3),
        ["Dense_0", "Dense_1", "LayerNorm_0/bias", "LayerNorm_0/scale"],
    ),
    "cnn": (
        CNN(),
        inputs(5, 5, 2),
        ["Conv_0", "Conv_1", "ConvTranspose_0", "ConvLocal_0", "Dense_0"],
    ),
    "attention": (
        Attention(),
        inputs(3, 4),
        [
            f"MultiHeadDotProductAttention_0/{part}"
            for part in ("query", "key", "value", "out")
        ]
        + ["Einsum_0"],
    ),
    "gru": (
        Recurrent(),
        inputs(SIZE, 2),  # as many steps as examples
        [f"GRUCell_0/{part}" for part in ("ir", "iz", "in", "hn")],
    ),
    "scan": (Scanned(), inputs(4), ["ScanLayer_0/Dense_0"]),
    "scan of remat": (
        Scanned(nn.remat(Layer, prevent_cse=False)),
        inputs(4),
        ["ScanCheckpointLayer_0/Dense_0"],
    ),
    "remat": (
        Remat(),
        inputs(4),
        ["CheckpointLayer_0/Dense_0", "CheckpointLayer_1/Dense_0"],
    ),
    "vmap": (Ensemble(), inputs(4), ["VmapLayer_0/Dense_0"]),
    "tied": (Tied(), inputs(4), ["dense", "dense#1"]),
    "embed": (Embedded(), TOKENS, ["embed", "dense", "embed#1"]),
}
