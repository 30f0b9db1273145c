"""Nets whose programs `absent_hardware.py` compiles: bfloat16, float32 parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bpfree.models import mlp as mlps
from bpfree.models import resnet as resnets
from bpfree.models import transformer as transformers

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Net(NamedTuple):
    """A net and its shapes.

    Attributes:
      apply: (params, x) -> logits in bfloat16.
      params: shapes of the parameters, float32.
      x, label: shapes of a batch.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    x: jax.ShapeDtypeStruct
    label: jax.ShapeDtypeStruct

    def loss(self, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """Cross-entropy (B,), the mean over the labels of an example."""
        logits = self.apply(params, batch["x"]).astype(jnp.float32)
        losses = cross_entropy(logits, batch["label"])
        return losses.reshape(losses.shape[0], -1).mean(1)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def made(model: nn.Module, x: jax.ShapeDtypeStruct, *labels: int) -> Net:
    """The net of a Flax module, whose labels of one example have the shape `labels`."""
    label = jax.ShapeDtypeStruct((x.shape[0], *labels), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]

    def apply(params, x):
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        return model.apply({"params": half}, x)

    return Net(apply, params, x, label)


def mlp(batch: int = 256, width: int = 4096) -> Net:
    """Three hidden layers, and 1,000 classes."""
    x = jax.ShapeDtypeStruct((batch, width), jnp.bfloat16)
    return made(mlps.Model(1000, (width,) * 3), x)


class GPT2(nn.Module):
    """Of GPT-2's size: tied embeddings of 50,257 words, 12 blocks of width 768."""

    words: int = 50_257
    width: int = 768
    depth: int = 12
    heads: int = 12

    @nn.compact
    def __call__(self, x):
        words = nn.Embed(self.words, self.width)
        start = nn.initializers.normal(0.01)
        places = self.param("places", start, (x.shape[1], self.width))
        x = words(x) + places
        for _ in range(self.depth):
            x = transformers.Block(self.heads, causal=True)(x)
        return words.attend(transformers.norm(x))


def transformer(batch: int = 8, length: int = 1024) -> Net:
    """Of GPT-2's size; every position of a sequence has a label."""
    return made(GPT2(), jax.ShapeDtypeStruct((batch, length), jnp.int32), length)


def resnet18(batch: int = 64) -> Net:
    return _resnet(18, batch)


def resnet50(batch: int = 64) -> Net:
    return _resnet(50, batch)


def _resnet(layers: int, batch: int) -> Net:
    """Images of 224 x 224, 1,000 classes, biases in place of batch norm."""
    model = resnets.Model(1000, layers, stem="imagenet", norm="none")
    return made(model, jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.bfloat16))


NETS: dict[str, Callable[..., Net]] = {
    "mlp": mlp,
    "transformer": transformer,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
