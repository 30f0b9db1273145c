"""More of NNX: grouped queries, and subsets of a module's parameters."""

import jax.numpy as jnp
from flax import nnx

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def _split(make, trained=nnx.Param):
    """(graph, parameters, everything else) of a module, nothing of it computed."""
    shapes = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return nnx.split(shapes, trained, ...)


class Attention(nnx.Module):
    """Einsum kernels with heads in front; keys and values stacked before the batch."""

    def __init__(self, width, heads, kv_heads, head_dim, rngs):
        init = nnx.initializers.lecun_normal()
        self.q = nnx.Param(init(rngs.params(), (heads, width, head_dim)))
        self.kv = nnx.Param(init(rngs.params(), (2, kv_heads, width, head_dim)))
        self.out = nnx.Param(init(rngs.params(), (heads, head_dim, width)))

    def __call__(self, x):
        q = _rotated(jnp.einsum("BTD,NDH->BTNH", x, self.q[...]))
        k, v = jnp.einsum("BSD,CKDH->CBSKH", x, self.kv[...])
        k = _rotated(k)
        groups = (*k.shape[:3], q.shape[2] // k.shape[2], k.shape[3])
        q = q.reshape(groups)
        scores = jnp.einsum("BTKGH,BSKH->BTKGS", q, k)
        causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None, :, None, None]
        probs = nnx.softmax(jnp.where(causal, scores, -1e30))
        read = jnp.einsum("BTKGS,BSKH->BTKGH", probs, v)
        read = read.reshape(*read.shape[:2], -1, read.shape[-1])
        return jnp.einsum("BTNH,NHD->BTD", read, self.out[...])


def _rotated(x):
    """Rotary positions of (B, T, heads, H)."""
    angle = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(x.shape[-1] // 2)
    sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class GemmaBlock(nnx.Module):
    def __init__(self, width, rngs):
        init = nnx.initializers.lecun_normal()
        self.norm1 = nnx.RMSNorm(width, rngs=rngs)
        self.attention = Attention(width, heads=4, kv_heads=2, head_dim=2, rngs=rngs)
        self.norm2 = nnx.RMSNorm(width, rngs=rngs)
        self.gate = nnx.Param(init(rngs.params(), (2, width, 6)))
        self.down = nnx.Param(init(rngs.params(), (6, width)))

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        gate, up = jnp.einsum("BTD,CDF->CBTF", self.norm2(x), self.gate[...])
        return x + (nnx.gelu(gate) * up) @ self.down[...]


class Gemma(nnx.Module):
    def __init__(self, rngs):
        self.embedder = nnx.Embed(9, 6, dtype=jnp.float64, rngs=rngs)
        self.blocks = nnx.List([GemmaBlock(6, rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(6, rngs=rngs)

    def __call__(self, ids):
        x = self.embedder(ids) * jnp.sqrt(6.0)
        for block in self.blocks:
            x = block(x)
        logits = self.embedder.attend(self.norm(x))
        return jnp.tanh(logits / 5.0) * 5.0


def grouped_queries() -> Case:
    """As many heads and steps as examples; a tied table, soft-capped logits."""
    graph, params, rest = _split(Gemma)
    batch = {"ids": labels(1, 9, 4, 4), "next": labels(2, 9, 4, 4)}

    def loss_fn(params, batch):
        logits = nnx.merge(graph, params, rest)(batch["ids"])
        return cross_entropy(logits, batch["next"]).mean(-1)

    return Case(loss_fn, filled(params), batch)


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.LoRALinear(5, 6, lora_rank=2, rngs=rngs)
        self.second = nnx.LoRALinear(6, 3, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


def lora() -> Case:
    """Trains `nnx.LoRAParam` alone; all others are constants."""
    graph, params, rest = _split(Adapted, nnx.LoRAParam)
    rest = filled(rest, seed=1)
    batch = {"x": normal(1, 4, 5), "label": labels(2, 3, 4)}

    def loss_fn(params, batch):
        model = nnx.merge(graph, params, rest)
        return cross_entropy(model(batch["x"]), batch["label"])

    return Case(loss_fn, filled(params), batch)
