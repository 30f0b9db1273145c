"""Flax Linen: models as they are published, with custom layers, loops and statistics."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def _case(model, batch, loss, key=None, **rngs) -> Case:
    """`loss(logits, batch)` of a model of `batch["x"]`; the key draws the dropout."""
    inputs = batch["x"]
    variables = jax.eval_shape(model.init, {"params": jax.random.key(0), **rngs}, inputs)

    def loss_fn(params, batch):
        return loss(model.apply({"params": params}, batch["x"]), batch)

    def with_key(params, batch, key):
        rngs = {"dropout": key}
        return loss(model.apply({"params": params}, batch["x"], rngs=rngs), batch)

    chosen = loss_fn if key is None else with_key
    return Case(chosen, filled(variables["params"]), batch, key)


def _classify(logits, batch):
    return cross_entropy(logits, batch["label"])


def _tag(logits, batch):
    return cross_entropy(logits, batch["y"]).mean(-1)


class Affine(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        w = self.param("w", nn.initializers.lecun_normal(), shape)
        b = self.param("b", nn.initializers.zeros_init(), (self.features,))
        return jnp.dot(x, w) + b


def raw_params() -> Case:
    """Layers of the user's own around `self.param`; as many classes as examples."""
    model = nn.Sequential([Affine(6), nn.tanh, Affine(6), nn.tanh, Affine(4)])
    batch = {"x": normal(0, 4, 4), "label": labels(1, 4, 4)}
    return _case(model, batch, _classify)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (4, 6):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.silu(nn.BatchNorm(use_running_average=False)(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(len(x), -1))


def conv_batch_norm() -> Case:
    """BatchNorm in training mode; the running statistics are aux."""
    model = ConvNet()
    batch = {"x": normal(0, 4, 4, 4, 2), "label": labels(1, 3, 4)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch["x"])
    stats = filled(variables["batch_stats"])

    def loss_fn(params, batch):
        logits, aux = model.apply(
            {"params": params, "batch_stats": stats}, batch["x"], mutable=["batch_stats"]
        )
        return _classify(logits, batch), aux

    return Case(loss_fn, filled(variables["params"]), batch)


class Recurrent(nn.Module):
    cell: type[nn.RNNCellBase]

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(self.cell(5, param_dtype=jnp.float64))(x)
        x = nn.RNN(self.cell(4, param_dtype=jnp.float64))(x)
        return nn.Dense(3)(x)


def gru() -> Case:
    """Two layers; T = B."""
    batch = {"x": normal(0, 4, 4, 3), "y": labels(1, 3, 4, 4)}
    return _case(Recurrent(nn.GRUCell), batch, _tag)


def lstm() -> Case:
    batch = {"x": normal(0, 3, 5, 3), "y": labels(1, 3, 3, 5)}
    return _case(Recurrent(nn.OptimizedLSTMCell), batch, _tag)


class Translator(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        source, target = inputs
        embed = nn.Embed(7, 4)
        cell = functools.partial(nn.LSTMCell, 5, param_dtype=jnp.float64)
        encoder = nn.RNN(cell(), return_carry=True)
        carry, _ = encoder(embed(source))
        y = nn.RNN(cell())(embed(target), initial_carry=carry)
        return nn.Dense(7)(y)


def seq2seq() -> Case:
    """An encoder's last state starts the decoder; teacher forcing; one embedding."""
    source, target = labels(0, 7, 4, 3), labels(1, 7, 4, 5)

    def loss(logits, batch):
        return cross_entropy(logits[:, :-1], batch["x"][1][:, 1:]).sum(-1)

    return _case(Translator(), {"x": (source, target)}, loss)


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(6)(nn.LayerNorm()(x))
        return x + nn.Dense(x.shape[-1])(nn.gelu(y)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        lifted = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(nn.remat(Residual), length=4, **lifted)()(x, None)
        return nn.Dense(3)(x)


def scanned_layers() -> Case:
    """`nn.scan` of `nn.remat`: stacked kernels; as many layers as examples."""
    return _case(Scanned(), {"x": normal(0, 4, 4), "label": labels(1, 3, 4)}, _classify)


class Block(nn.Module):
    heads: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, mask=None):
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0)
        attention = nn.MultiHeadDotProductAttention(self.heads)
        x = x + drop(attention(nn.LayerNorm()(x), mask=mask))
        y = nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x))
        return x + drop(nn.Dense(x.shape[-1])(nn.gelu(y)))


class LanguageModel(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 8)
        position = self.param("position", nn.initializers.normal(0.5), (4, 8))
        x = nn.Dropout(0.2, deterministic=False)(embed(tokens) + position)
        for _ in range(2):
            x = Block(4, 0.2)(x, nn.make_causal_mask(tokens))
        return embed.attend(nn.LayerNorm()(x))


def tied_transformer() -> Case:
    """Logits by the embedding; dropout by a key; B = T = heads."""

    def loss(logits, batch):
        return cross_entropy(logits[:, :-1], batch["x"][:, 1:]).mean(-1)

    key = jax.random.key(3)
    return _case(LanguageModel(), {"x": labels(0, 11, 4, 4)}, loss, key, dropout=key)


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.Conv(8, (2, 2), (2, 2), padding="VALID")(images)
        x = x.reshape(len(x), -1, 8)
        token = self.param("class_token", nn.initializers.normal(0.5), (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = x + self.param("position", nn.initializers.normal(0.5), (1, x.shape[1], 8))
        for _ in range(2):
            x = Block(2)(x)
        probe = self.param("probe", nn.initializers.normal(0.5), (1, 1, 8))
        pool = nn.MultiHeadDotProductAttention(2)
        pooled = pool(jnp.tile(probe, (len(x), 1, 1)), nn.LayerNorm()(x))
        return nn.Dense(3)(x[:, 0] + pooled[:, 0])


def vision_transformer() -> Case:
    """Class token, learned positions, a probe that attends to all patches."""
    batch = {"x": normal(0, 4, 4, 4, 3), "label": labels(1, 3, 4)}
    return _case(VisionTransformer(), batch, _classify)


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            y = nn.Dense(6)(nn.LayerNorm()(x).swapaxes(1, 2))
            x = x + nn.Dense(x.shape[1])(nn.gelu(y)).swapaxes(1, 2)
            y = nn.Dense(6)(nn.LayerNorm()(x))
            x = x + nn.Dense(x.shape[2])(nn.gelu(y))
        return nn.Dense(3)(x.mean(1))


def mixer() -> Case:
    """Products over tokens and over channels in turn; B = tokens = channels."""
    batch = {"x": normal(0, 4, 4, 4), "label": labels(1, 3, 4)}
    return _case(Mixer(), batch, _classify)


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        top = nn.silu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        low = nn.silu(nn.Conv(6, (3, 3), strides=(2, 2))(top))
        low = nn.silu(nn.Conv(6, (3, 3), feature_group_count=3)(low))
        up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(low)
        joined = jnp.concatenate([up, top], -1)
        y = nn.silu(nn.Conv(4, (3, 3), feature_group_count=4)(joined))
        return nn.Conv(x.shape[-1], (1, 1))(y)


def unet() -> Case:
    """Strided, grouped and transposed convolutions; a skip by concatenation."""

    def loss(image, batch):
        return ((image - batch["target"]) ** 2).sum((1, 2, 3))

    batch = {"x": normal(0, 4, 4, 4, 4), "target": normal(1, 4, 4, 4, 4)}
    return _case(UNet(), batch, loss)
