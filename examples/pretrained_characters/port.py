"""The character model of the package textgenrnn 2.0.0: net, weights, and a text.

The package is MIT-licensed; its weights were trained on titles of web pages. It is read
where it is installed and not imported, since it asks for TensorFlow.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bpfree.data import Dataset, characters

VOCABULARY = 465  # characters, and 0 for what is none of them


class Model(nn.Module):
    """Embedding, two LSTMs, an average by attention, logits of the next character.

    It reads 40 characters, as the package does, whose output is the last of these logits:
    after many fewer or many more its states are nothing that the weights have learned.

    Attributes:
      num_classes: size of the vocabulary.
      last: logits are those of so many last steps, each with an average up to there.
      rank: of adapters, U V added to the kernels of the LSTMs; 0 for none.
    """

    num_classes: int = VOCABULARY
    last: int = 10
    rank: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Numbers of characters (B, T) to logits (B, last, num_classes)."""
        seen = [nn.Embed(self.num_classes, 100, name="embedding")(x)]
        for name in ("rnn_1", "rnn_2"):
            seen.append(self.layer(name, seen[-1]))
        features = jnp.concatenate(seen, -1)
        score = nn.Dense(1, use_bias=False, name="attention")(features)[:, None, :, 0]
        past = jnp.tri(x.shape[1], dtype=bool)[None, -self.last :]
        weight = jax.nn.softmax(jnp.where(past, score, -jnp.inf))
        return nn.Dense(self.num_classes, name="output")(weight @ features)

    def layer(self, name: str, x: jax.Array, units: int = 128) -> jax.Array:
        shape = (x.shape[-1] + units, 4 * units)
        if not self.rank:
            return LSTM(units, name=name)(x)
        return LSTM(units, name=name)(
            x, Adapter(shape, self.rank, name=f"{name}_adapter")()
        )


class LSTM(nn.Module):
    """One layer; its kernel (features + units, 4 units) takes input and state at once."""

    units: int

    @nn.compact
    def __call__(self, x: jax.Array, added: jax.Array | float = 0.0) -> jax.Array:
        """Inputs (B, T, features) to states (B, T, units), with `added` to the kernel."""
        shape = (x.shape[-1] + self.units, 4 * self.units)
        kernel = (
            self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
            + added
        )
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)

        def step(state, now):
            memory, h = state
            gates = jnp.concatenate([now, h], -1) @ kernel + bias[None]
            i, f, g, o = jnp.split(gates, 4, -1)
            memory = nn.sigmoid(f) * memory + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(memory)
            return (memory, h), h

        zeros = jnp.zeros((x.shape[0], self.units), x.dtype)
        _, states = jax.lax.scan(step, (zeros, zeros), jnp.moveaxis(x, 1, 0))
        return jnp.moveaxis(states, 0, 1)


class Adapter(nn.Module):
    """U V of a low rank, zero at first."""

    shape: tuple[int, int]
    rank: int

    @nn.compact
    def __call__(self) -> jax.Array:
        rows, columns = self.shape
        down = self.param(
            "down", nn.initializers.lecun_normal(), (rows, self.rank), jnp.float32
        )
        up = self.param("up", nn.initializers.zeros, (self.rank, columns), jnp.float32)
        return down @ up


def load() -> dict:
    """The package's weights as the model's variables."""
    import h5py

    with h5py.File(folder() / "textgenrnn_weights.hdf5") as file:
        layers = {name: list(_arrays(file[name])) for name in file}
    (attention,), (embedding,) = layers["attention"], layers["embedding"]
    bias, kernel = layers["output"]
    params = {
        "embedding": {"embedding": embedding},
        "attention": {"kernel": attention},
        "output": {"kernel": kernel, "bias": bias},
        **{name: _lstm(*layers[name]) for name in ("rnn_1", "rnn_2")},
    }
    return {"params": params}


def folder() -> Path:
    """Where the package is installed; raises ModuleNotFoundError."""
    spec = importlib.util.find_spec("textgenrnn")
    if spec is None:
        raise ModuleNotFoundError("textgenrnn is not installed: see config.py")
    return Path(spec.submodule_search_locations[0])


def _arrays(group):
    """The arrays of a group of an HDF5 file, by name: bias, kernel, recurrent_kernel."""
    for item in group.values():
        yield from _arrays(item) if hasattr(item, "values") else [item[:]]


def _lstm(bias, kernel, recurrent) -> dict:
    """cuDNN's LSTM, whose gates i, f, g, o are transposed and whose biases are two."""
    inputs = [k.T.reshape(k.shape, order="F") for k in np.split(kernel, 4, 1)]
    states = [k.T for k in np.split(recurrent, 4, 1)]
    kernel = np.concatenate([np.hstack(inputs), np.hstack(states)])
    return {"kernel": kernel, "bias": bias.reshape(2, -1).sum(0)}


def text(path: str = "/usr/share/dictd/devil.dict.dz", held: int = 1500) -> Dataset:
    """A text in the package's numbers: x (N, 40), and what follows its last ten steps.

    Examples are ten characters apart, so that each but the first 30 is a label once.

    Args:
      path: a file, compressed by gzip or not. The default is Ambrose Bierce's "The
        Devil's Dictionary" as the Debian package dict-devil brings it.
      held: the most examples of validation, and of test.
    """
    raw = Path(path).read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    found = characters.paragraphs([raw.decode(errors="replace")])

    def part(places, most=None):
        chosen = " ".join(p for k, p in enumerate(found) if k % 10 in places)
        row = numbers(chosen)
        pieces = np.lib.stride_tricks.sliding_window_view(row, 41)[::10][:most]
        return {"x": pieces[:, :-1], "label": pieces[:, -10:]}

    source = {"split": "paragraph k: validation k % 10 == 8, test k % 10 == 9"}
    parts = part(range(8)), part([8], held), part([9], held)
    return Dataset(*parts, VOCABULARY, source)


def numbers(text: str) -> np.ndarray:
    """The package's number of each character, 0 for those it does not know."""
    known = json.loads((folder() / "textgenrnn_vocab.json").read_text())
    return np.array([known.get(character, 0) for character in text], np.int32)


def bits(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """Bits per character."""
    loss = optax.softmax_cross_entropy_with_integer_labels
    return loss(outputs, label) / np.log(2)
