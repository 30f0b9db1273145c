"""More of Linen: ragged and bidirectional sequences, lifted weights, routed tokens."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from tests.zoo.case import Case, cross_entropy, filled, labels, normal
from tests.zoo.linen import Affine, Block


def _shapes(model, *args, **options):
    return jax.eval_shape(partial(model.init, **options), jax.random.key(0), *args)


def _case(model, batch, loss):
    def loss_fn(params, batch):
        return loss(model.apply({"params": params}, batch["x"]), batch)

    return Case(loss_fn, filled(_shapes(model, batch["x"])["params"]), batch)


def _classify(logits, batch):
    return cross_entropy(logits, batch["label"])


class Scanned(nn.Module):
    """Layers stacked by `nn.scan`, each recomputed in the backward pass."""

    depth: int

    @nn.compact
    def __call__(self, x):
        def body(block, x, _):
            return block(x), None

        block = nn.remat(Block)(heads=2, name="layers")
        stack = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x = nn.Dense(8, name="embedding")(x)
        x, _ = stack(block, x, None)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x).mean(1))


def scanned_transformer() -> Case:
    """As many layers as examples and steps."""
    batch = {"x": normal(1, 3, 3, 5), "label": labels(2, 3, 3)}
    return _case(Scanned(depth=3), batch, _classify)


class OwnLayers(nn.Module):
    @nn.compact
    def __call__(self, ids):
        table = self.param("table", nn.initializers.normal(1.0), (7, 5))
        x = jnp.take(table, ids, axis=0) + table[ids[:, :1]]
        x = nn.relu(Affine(6)(x))
        mixer = self.param("mixer", nn.initializers.normal(0.5), (4, 4))
        x = x + jnp.einsum("bsd,st->btd", x, mixer)  # over the tokens
        return nn.Dense(3)(nn.tanh(Affine(6)(x)).mean(1))


def token_mixer() -> Case:
    """A product over tokens, a kernel from the left; a table looked up twice."""
    batch = {"x": labels(1, 7, 3, 4), "label": labels(2, 3, 3)}
    return _case(OwnLayers(), batch, _classify)


class WeightNormalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.WeightNorm(nn.Dense(5))(x))
        return nn.SpectralNorm(nn.Dense(3))(x, update_stats=False)


def weight_norm() -> Case:
    """`nn.WeightNorm` and `nn.SpectralNorm` around dense layers."""
    model = WeightNormalised()
    batch = {"x": normal(1, 4, 4), "label": labels(2, 3, 4)}
    variables = _shapes(model, batch["x"])
    stats = filled(variables["batch_stats"])

    def loss_fn(params, batch):
        logits = model.apply({"params": params, "batch_stats": stats}, batch["x"])
        return _classify(logits, batch)

    return Case(loss_fn, filled(variables["params"]), batch)


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        def conv(x, features):
            x = nn.Conv(features, (3, 3), padding="SAME")(x)
            return nn.silu(nn.GroupNorm(num_groups=2)(x))

        a = conv(x, 4)
        b = conv(nn.max_pool(a, (2, 2), (2, 2)), 6)
        up = nn.ConvTranspose(4, (2, 2), strides=(2, 2))(b)
        y = conv(jnp.concatenate([a, up], axis=-1), 4)
        size = (*x.shape[:3], 4)
        y = y + jax.image.resize(nn.avg_pool(y, (2, 2), (2, 2)), size, "bilinear")
        return nn.Conv(2, (1, 1))(y)


def unet_resized() -> Case:
    """Skips by concatenation, a transposed convolution, a resize; a loss per pixel."""
    batch = {"x": normal(1, 3, 4, 4, 2), "label": labels(2, 2, 3, 4, 4)}

    def loss(logits, batch):
        return cross_entropy(logits, batch["label"]).mean((1, 2))

    return _case(UNet(), batch, loss)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.GRUCell(5, param_dtype=x.dtype))(x)
        forward = nn.RNN(nn.OptimizedLSTMCell(3, param_dtype=x.dtype))
        backward = nn.RNN(nn.LSTMCell(3, param_dtype=x.dtype))
        x = nn.Bidirectional(forward, backward)(x)
        return nn.Dense(3)(x[:, -1] + x.mean(1))


def bidirectional() -> Case:
    """A GRU under a bidirectional LSTM; as many steps as examples."""
    batch = {"x": normal(1, 4, 4, 3), "label": labels(2, 3, 4)}
    return _case(Recurrent(), batch, _classify)


class SequenceToSequence(nn.Module):
    vocabulary: int = 6

    @nn.compact
    def __call__(self, source, target, lengths):
        cell = partial(nn.OptimizedLSTMCell, 4, param_dtype=jnp.float64)
        source = nn.Embed(self.vocabulary, 5, name="source")(source)
        encoder = nn.RNN(cell(), return_carry=True, name="encoder")
        carry, memory = encoder(source, seq_lengths=lengths)
        decoder = nn.RNN(cell(), name="decoder")
        target = nn.Embed(self.vocabulary, 5, name="target")(target)
        x = decoder(target, initial_carry=carry)
        scores = jnp.einsum("btd,bsd->bts", nn.Dense(4, name="query")(x), memory)
        read = jnp.einsum("bts,bsd->btd", nn.softmax(scores), memory)
        return nn.Dense(self.vocabulary, name="head")(jnp.concatenate([x, read], -1))


def ragged_seq2seq() -> Case:
    """Ragged sources, teacher forcing, attention; source steps as examples."""
    model = SequenceToSequence()
    batch = {
        "source": labels(1, 6, 3, 3),
        "target": labels(2, 6, 3, 4),
        "lengths": jnp.asarray([2, 3, 1]),
    }
    inputs = (batch["source"], batch["target"][:, :-1], batch["lengths"])
    params = _shapes(model, *inputs)["params"]

    def loss_fn(params, batch):
        target = batch["target"]
        inputs = (batch["source"], target[:, :-1], batch["lengths"])
        logits = model.apply({"params": params}, *inputs)
        return cross_entropy(logits, target[:, 1:]).mean(-1)

    return Case(loss_fn, filled(params), batch)


class Experts(nn.Module):
    """Top-k routing with a capacity; tokens go to experts by one-hot einsums."""

    experts: int
    k: int
    capacity: int

    @nn.compact
    def __call__(self, x):
        rows, width = x.shape
        init = nn.initializers.lecun_normal(batch_axis=0)
        w_in = self.param("w_in", init, (self.experts, width, 6))
        w_out = self.param("w_out", init, (self.experts, 6, width))
        gates = nn.softmax(nn.Dense(self.experts, use_bias=False, name="router")(x))
        top, chosen = jax.lax.top_k(gates, self.k)
        top = top / top.sum(-1, keepdims=True)
        assigned = jax.nn.one_hot(chosen, self.experts, dtype=x.dtype)  # (rows, k, E)
        before = jnp.cumsum(assigned.reshape(-1, self.experts), 0) - 1
        slot = before.reshape(rows, self.k, self.experts).astype(int)
        slots = jax.nn.one_hot(slot, self.capacity, dtype=x.dtype)
        dispatch = jnp.einsum("rke,rkec->rec", assigned, slots)
        combine = jnp.einsum("rk,rke,rkec->rec", top, assigned, slots)
        h = jnp.einsum("rd,rec->ecd", x, dispatch)
        h = nn.gelu(jnp.einsum("ecd,edh->ech", h, w_in))
        h = jnp.einsum("ech,ehd->ecd", h, w_out)
        return jnp.einsum("ecd,rec->rd", h, combine), gates


class MixtureOfExperts(nn.Module):
    experts: int = 3

    @nn.compact
    def __call__(self, x):
        batch, steps, _ = x.shape
        x = nn.Dense(5, name="embedding")(x)
        h, gates = Experts(self.experts, 2, 6)(nn.LayerNorm()(x).reshape(-1, 5))
        x = x + h.reshape(batch, steps, 5)
        return nn.Dense(3, name="head")(x.mean(1)), gates.reshape(batch, steps, -1)


def mixture_of_experts() -> Case:
    """Batch and time folded; slots of experts hold tokens of all examples. E as B."""
    batch = {"x": normal(1, 3, 4, 4), "label": labels(2, 3, 3)}

    def loss(out, batch):
        logits, gates = out
        return cross_entropy(logits, batch["label"]) + 0.1 * (gates**2).mean((1, 2))

    return _case(MixtureOfExperts(), batch, loss)
