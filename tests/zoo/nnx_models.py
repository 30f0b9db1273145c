"""Flax NNX: a functional loss from `nnx.split` and `nnx.merge`."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.zoo.case import Case, cross_entropy, double, filled, labels, normal, weight


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dense = nnx.Linear(16, 6, rngs=rngs)
        self.norm2 = nnx.BatchNorm(6, rngs=rngs)
        self.drop = nnx.Dropout(0.25)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x, rngs):
        x = nnx.avg_pool(nnx.silu(self.norm(self.conv(x))), (2, 2), (2, 2))
        x = self.norm2(self.dense(x.reshape(len(x), -1)))
        return self.head(self.drop(nnx.silu(x), rngs=rngs))


def conv_batch_norm() -> Case:
    """Statistics of the batch in training mode, returned as aux; dropout by a key."""
    model = Net(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rest = double(rest)

    def loss_fn(params, batch, key):
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(batch["x"], nnx.Rngs(dropout=key))
        aux = nnx.state(model, nnx.BatchStat)
        return cross_entropy(logits, batch["label"]), aux

    batch = {"x": normal(0, 4, 4, 4, 2), "label": labels(1, 3, 4)}
    return Case(loss_fn, filled(params), batch, jax.random.key(2))


class RMSNorm(nnx.Module):
    def __init__(self, width):
        self.scale = nnx.Param(jnp.zeros(width))

    def __call__(self, x):
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + self.scale)


def _rotated(x):
    """Rotary positions for (B, T, heads, width of a head)."""
    half = x.shape[-1] // 2
    rate = 1.0 / 100 ** (jnp.arange(half, dtype=x.dtype) / half)
    angle = (jnp.arange(x.shape[1], dtype=x.dtype)[:, None] * rate)[:, None]
    a, b = jnp.split(x, 2, -1)
    turned = (
        a * jnp.cos(angle) - b * jnp.sin(angle),
        b * jnp.cos(angle) + a * jnp.sin(angle),
    )
    return jnp.concatenate(turned, -1)


class Layer(nnx.Module):
    """Kernels with heads in front; keys and values on an axis in front of those."""

    def __init__(self, seed, width, heads, size, hidden):
        self.norm, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.query = nnx.Param(weight(seed, width, heads, width, size))
        self.key_value = nnx.Param(weight(seed + 1, width, 2, heads, width, size))
        self.out = nnx.Param(weight(seed + 2, heads * size, heads, size, width))
        self.gate = nnx.Param(weight(seed + 3, width, 2, width, hidden))
        self.down = nnx.Param(weight(seed + 4, hidden, hidden, width))

    def __call__(self, x):
        h = self.norm(x)
        q = _rotated(jnp.einsum("BTD,NDH->BTNH", h, self.query))
        k, v = jnp.einsum("BSD,CKDH->CBSKH", h, self.key_value)
        logits = jnp.einsum("BTNH,BSNH->BNTS", q, _rotated(k))
        causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        attention = jax.nn.softmax(jnp.where(causal, logits, -1e9))
        mixed = jnp.einsum("BNTS,BSNH->BTNH", attention, v)
        x = x + jnp.einsum("BTNH,NHD->BTD", mixed, self.out)
        gate, up = jnp.einsum("BTD,CDF->CBTF", self.norm2(x), self.gate)
        return x + jax.nn.gelu(gate) * up @ self.down


class Gemma(nnx.Module):
    def __init__(self, heads):
        self.embedding = nnx.Param(normal(50, 7, 8) / 2)
        self.layers = nnx.List([Layer(10 * i, 8, heads, 2, 6) for i in range(2)])
        self.norm = RMSNorm(8)

    def __call__(self, tokens):
        x = jnp.take(self.embedding[...], tokens, axis=0) * jnp.sqrt(8.0)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.embedding[...].T


def _gemma(size, steps, heads) -> Case:
    graphdef, params = nnx.split(Gemma(heads), nnx.Param)

    def loss_fn(params, batch):
        logits = nnx.merge(graphdef, params)(batch["tokens"])
        return cross_entropy(logits[:, :-1], batch["tokens"][:, 1:]).mean(-1)

    return Case(loss_fn, filled(params), {"tokens": labels(60, 7, size, steps)})


def gemma() -> Case:
    """B = T = heads; the batch is axis 1 of keys and values."""
    return _gemma(4, 4, 4)


def gemma_pair() -> Case:
    """A batch of two: as long as the axis of keys and values."""
    return _gemma(2, 3, 4)
