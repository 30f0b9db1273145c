"""Character texts: paragraphs, numbers, pieces; losses and accuracy of sequences."""

import hashlib
import platform
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bpfree.data import characters, raw
from bpfree.training import losses, objective
from bpfree.training.loss_functions import cross_entropy

NAME = "python_topics"


def letters(row):
    return "".join(chr(n + 31) if n else "\n" for n in row)


def test_paragraphs_count_once_and_have_single_spaces():
    texts = ["One\n  two\n\nthree\n", "three\n\n\n\nfour"]
    assert characters.paragraphs(texts) == ["One two", "three", "four"]


def test_numbers_of_characters():
    found = characters.numbers(["a b", "é~"])
    assert letters(found) == "a b\n?~\n"
    assert found.dtype == np.int32 and found.max() < characters.NUM_CLASSES == 96


def test_examples_follow_one_another():
    found = characters.examples(np.arange(10), 3)
    np.testing.assert_array_equal(found["x"], np.arange(9).reshape(3, 3))
    np.testing.assert_array_equal(found["label"], found["x"] + 1)
    assert characters.examples(np.arange(9), 3)["x"].shape == (2, 3)


def test_parts_of_the_help_text(monkeypatch):
    ten = [f"paragraph {k}" for k in range(10)]
    monkeypatch.setitem(characters.TEXTS, NAME, lambda: ["\n\n".join([*ten, ten[0]])])
    data = characters.load(NAME, length=6)
    expected = {"train": ten[:8], "validation": ten[8:9], "test": ten[9:]}
    for name, part in expected.items():
        text, found = "\n".join(part) + "\n", getattr(data, name)
        size = (len(text) - 1) // 6
        assert letters(found["x"].ravel()) == text[: 6 * size]
        assert letters(found["label"].ravel()) == text[1 : 6 * size + 1]
        assert data.source[name] == size
    assert data.source["sha256"] == hashlib.sha256("\n".join(ten).encode()).hexdigest()


def test_the_text_of_this_python():
    data = characters.load(NAME)
    assert platform.python_version() in data.source["from"]
    assert data.source["train"] > 5000 and data.train["label"].shape[1] == 32
    counts = np.bincount(data.test["label"].ravel(), minlength=96)
    assert counts.argmax() == ord(" ") - 31 and counts.max() < 0.25 * counts.sum()


def test_mistakes(monkeypatch):
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        characters.load(NAME, length=0)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(raw.DataError, match="comes without its help text"):
        characters.load(NAME)


class _Table(nn.Module):
    """Logits of an example's symbols, from a table."""

    @nn.compact
    def __call__(self, x, train=False):
        return jnp.asarray(self.param("table", nn.initializers.zeros, (5, 5)))[x]


def test_losses_and_accuracy_over_all_positions():
    x, label = np.array([[0, 1, 2], [3, 4, 0]]), np.array([[1, 1, 4], [0, 2, 1]])
    table = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    batch = {"x": jnp.asarray(x), "label": jnp.asarray(label)}
    measure = losses.measure(losses.find_metrics({}, ()), _Table(), cross_entropy)
    found = jax.jit(lambda b: measure({"table": table}, {}, b))(batch)["accuracy"]
    np.testing.assert_allclose(found, np.mean(table.argmax(1)[x] == label), rtol=1e-6)
    each = np.log(np.exp(table).sum(1))[x] - table[x, label]
    mean = jax.jit(objective.of_examples(cross_entropy, "example"))
    np.testing.assert_allclose(mean(table[x], label), each.mean(1), rtol=1e-5)
    np.testing.assert_allclose(mean(table[x[:, 0]], label[:, 0]), each[:, 0], rtol=1e-5)
