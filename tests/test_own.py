"""Data, model and estimator of one's own, from a file, trained and evaluated."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bpfree
from bpfree.data import Dataset, arrays
from bpfree.sweeps import main as sweeps
from bpfree.training import (
    ConfigError,
    WorkdirError,
    command_line,
    config,
    config_files,
    fit,
    job,
    load,
    own,
)
from bpfree.training.trained import scores
from tests.test_training import standard_promotion

assert standard_promotion  # a fixture for every test of this module, too

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_model"

MINE = """
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx


def load(num=60, classes=3):
    rng = np.random.default_rng(0)
    label = np.arange(num) % classes
    return {"x": rng.normal(size=(num, 4)) + 6 * np.eye(4)[label], "label": label}


def broken():
    raise KeyError("gone")


def nothing():
    return None


class Linen(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(x)))


class Narrow(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x), x


class Fixed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.zeros((len(x), 3))


class Raises(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x @ jnp.ones((7, 3)))


def column():
    found = load()
    return {**found, "label": found["label"][:, None]}


def alike():
    return {**load(), "label": np.zeros(60, int)}


class Nnx(nnx.Module):
    def __init__(self, num_classes, width=8, *, rngs):
        sizes = [4] + 11 * [width] + [num_classes]
        pairs = zip(sizes[:-1], sizes[1:])
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairs])

    def __call__(self, x):
        for layer in self.layers:
            inner = layer.in_features == layer.out_features
            x = x + 0.1 * layer(x) if inner else layer(x)
        return x


class Constant(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        self.scale = jnp.array([0.0, 1.0, 1.0, 1.0])
        self.inner = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.inner(x * self.scale[None])


class WithState(nnx.Module):
    def __init__(self, num_classes, width=16, *, rngs):
        self.inner = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.outer = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(nnx.relu(self.norm(self.inner(x)))))


class Dropped(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(16)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)


class Deterministic(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dropout(0.5)(nn.Dense(16)(x), deterministic=deterministic)
        return nn.Dense(self.num_classes)(x)


def keyed(num_classes):
    return lambda key, x: jnp.zeros((4, num_classes)), lambda params, rng, x: x @ params


def pair(num_classes):
    return (
        lambda key, x: [jnp.zeros((4, num_classes)), jnp.zeros(num_classes)],
        lambda params, x: x @ params[0] + params[1][None],
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(MINE)
    (folder / "junk.npz").write_text("junk")
    np.savez(folder / "objects.npz", x=np.array([None, 1], object), label=[0, 1])
    return folder


def settings(folder, model="Linen", data="load", **changes):
    return {
        "seed": 0,
        "data": f"{folder}/mine.py:{data}",
        "model": f"{folder}/mine.py:{model}",
        "chain": (
            ("node_perturbation", {"num_samples": 2}),
            ("adam", {"learning_rate": 0.03}),
        ),
        "batch_size": 12,
        "num_steps": 100,
        "log_every": 50,
        "checkpoint_every": 100,
        **changes,
    }


@pytest.mark.parametrize("model", ["Linen", "Nnx", "pair", "WithState", "Dropped"])
def test_models_of_ones_own_learn_and_are_read_again(model, folder, tmp_path):
    result = fit(settings(folder, model), tmp_path / "run")
    trained = load(tmp_path / "run")
    assert result.validation["accuracy"] >= 0.9 and trained.step == 100
    jax.tree.map(
        np.testing.assert_array_equal, trained.variables["params"], result.params
    )
    found = scores(load(tmp_path / "run"), "validation")
    assert found["validation/accuracy"] == result.validation["accuracy"]
    batch = trained.job.data.validation
    logits = np.asarray(trained.model.apply(trained.variables, batch["x"]), np.float64)
    normalised = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -normalised[np.arange(len(logits)), batch["label"]].mean()
    rounding = np.finfo(np.float32).eps * np.abs(logits).max()
    assert abs(found["validation/cross_entropy"] - expected) < 2 * rounding
    assert (
        scores(load(tmp_path / "run"), "test")["test/accuracy"] == result.test["accuracy"]
    )


def test_nodes_of_an_nnx_model_are_its_layers(folder):
    made = job.prepare(config.read(settings(folder, "Nnx")))
    nodes = jax.eval_shape(bpfree.record(made.loss_fn), made.params, made.batch)[1]
    assert set(nodes) == {f"layers/{i}" for i in range(12)}


def test_arrays_are_split_by_the_rule_and_known_by_their_checksum(tmp_path):
    x, label = np.arange(40.0)[:, None], np.arange(40) % 2
    np.savez(tmp_path / "mine.npz", x=x, label=label)
    made = arrays.load(str(tmp_path / "mine.npz"))
    rank = np.arange(40) // 2 % 5
    assert made.num_classes == 2
    np.testing.assert_array_equal(made.validation["x"], x[rank == 3])
    np.testing.assert_array_equal(made.test["label"], label[rank == 4])
    np.testing.assert_array_equal(made.train["x"], x[rank < 3])
    assert (made.source["train"], made.source["validation"]) == (24, 8)
    other = arrays.dataset({"x": x + 1, "label": label}, "mine")
    assert other.source["sha256"] != made.source["sha256"]
    again = arrays.dataset(Dataset(made.train, made.validation, made.test, 2, {}), "mine")
    assert again.source["sha256"] == made.source["sha256"]


_PART = {"x": np.ones((4, 2)), "label": np.ones(4, int)}
_NO_ROWS = {key: values[:0] for key, values in _PART.items()}
_WIDER = {**_PART, "x": np.ones((4, 3))}
ARRAYS = {
    "no label": ({"x": np.ones((9, 2))}, "has no array 'label'; it has .*x"),
    "rows": ({"x": np.ones((9, 2)), "label": np.ones(8, int)}, "must have as many rows"),
    "kind": ({"x": np.ones((9, 2)), "label": np.array(9 * ["a"])}, "label is <U1"),
    "nan label": ({"x": np.ones((9, 2)), "label": np.full(9, np.nan)}, "label has val"),
    "negative": ({"x": np.ones((9, 2)), "label": -np.ones(9, int)}, "label -1 is neg"),
    "nan": ({"x": np.full((9, 2), np.nan), "label": np.ones(9, int)}, "not finite"),
    "few": ({"x": np.ones((3, 2)), "label": np.ones(3, int)}, "part has no examples"),
    "huge": ({"x": np.ones((9, 2)), "label": np.arange(9) + 2**40}, "beyond int32"),
    "huge x": ({"x": np.full(9, 2**63, np.uint64), "label": np.ones(9, int)}, "x has 92"),
    "wide": ({"x": np.full(9, 1e39), "label": np.ones(9, int)}, "finite in float32"),
    "truths": ({"x": np.ones((9, 2)), "label": np.ones(9, bool)}, r"astype\(float\)"),
    "mask": ({"x": np.ma.masked_equal([1, 2], 2), "label": [0, 1]}, "masked entries"),
    "two inputs": ({"x": {"a": 1, "b": 2}, "label": [0, 1]}, "x is a dict of .*'b'"),
    "pair": ((np.ones((9, 2)), np.ones(9, int)), "gives a tuple; return a dict"),
    "batches": (iter([{}]), "gives a list_iterator; return .* of all examples"),
    "dict of parts": ({"train": _PART, "test": _PART}, "return bpfree.data.Dataset"),
    "several shapes": (
        [{"x": np.ones(n), "label": 0} for n in (2, 3)],
        "the examples differ: all input arrays",
    ),
    "none": (None, "gives a NoneType; return a dict"),
    "more": (
        {"x": np.ones((9, 2)), "label": np.ones(9, int), "weight": np.ones(9)},
        r"has \['weight'\] besides x and label",
    ),
    "ragged": ({"x": [[1], [1, 2]], "label": np.ones(2, int)}, "mine: x is no array"),
    "gaps": ({"x": np.ones((9, 2)), "label": 5 * np.arange(9)}, "label 40 in 9 examples"),
    "no part": (Dataset(_PART, None, _PART, 2, {}), "validation part is a NoneType"),
    "an empty part": (Dataset(_PART, _PART, _NO_ROWS, 2, {}), "test part has no exam"),
    "parts": (
        Dataset(_PART, _PART, _WIDER, 2, {}),
        r"x .* differs: train float32 \(2,\)",
    ),
}


@pytest.mark.parametrize("mistake", ARRAYS)
def test_a_mistake_in_arrays_is_named(mistake):
    found, message = ARRAYS[mistake]
    with pytest.raises(ValueError, match=message):
        arrays.dataset(found, "mine")


def test_a_source_of_examples_is_its_arrays():
    x, label = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2

    class Source:
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return {"x": x[i], "label": label[i]}

    made, same = arrays.dataset(Source(), "mine"), {"x": x, "label": label}
    assert made.source == arrays.dataset(same, "mine").source


def test_a_source_of_grain():
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.range(20).map(lambda i: {"x": np.ones(3) * i, "label": i % 2})
    made = arrays.dataset(rows.shuffle(seed=0), "mine")
    assert made.train["x"].shape == (12, 3) and made.num_classes == 2
    with pytest.raises(ValueError, match="examples: let its source not repeat"):
        arrays.dataset(rows.repeat(), "mine")


def test_labels_beyond_the_classes_are_refused():
    part = {"x": np.ones((2, 1)), "label": np.array([0, 5])}
    with pytest.raises(ValueError, match="label 5, but num_classes=5"):
        arrays.dataset(Dataset(part, part, part, 5, {}), "mine")


MISTAKES = {
    "narrow": ({"model": "{}:Narrow"}, "2 outputs for labels of 3 classes"),
    "pair": ({"model": "{}:Pair"}, "outputs are a tuple, not one array"),
    "fixed": ({"model": "{}:Fixed"}, "the model has no parameters to train"),
    "signature": ({"model": "{}:keyed"}, r"takes \(params, rng, x\), and must take"),
    "its line": ({"model": "{}:Raises"}, r"same shape.*\(.*mine.py, line \d+\)"),
    "column": ({"data": "{}:column"}, "one label for each row of logits"),
    "no file": ({"model": "./gone.py:M"}, "config.model: there is no file .*gone.py"),
    "no name": ({"model": "{}:Lenin"}, "'Lenin' is unknown. Did you mean 'Linen'"),
    "no module": ({"model": "no_such.nets:M"}, "cannot import 'no_such.nets'"),
    "no model": ({"model": "{}:nothing"}, "makes a NoneType, no model"),
    "argument": ({"model": {"name": "{}:Linen", "wdth": 3}}, "'wdth' is unknown"),
    "type": ({"model": {"name": "{}:Linen", "width": "3"}}, "width='3' is a str"),
    "data": ({"data": "{}:broken"}, "config.data: KeyError: 'gone' .*mine.py, line 15"),
    "one class": ({"data": "{}:alike"}, "all labels are 0, and there is nothing"),
    "data none": ({"data": "{}:nothing"}, "gives a NoneType"),
    "npz": ({"data": "./gone.npz"}, "gone.npz cannot be read: it is not there"),
    "no npz": ({"data": "pyproject.toml"}, "is no set by name, and no .npz file"),
    "no zip": ({"data": "{}/junk.npz"}, "junk.npz cannot be read: it is no .npz file"),
    "objects": ({"data": "{}/objects.npz"}, "cannot be read: x: Object arrays"),
    "no argument": ({"data": {"name": "{}:nothing", "a": 1}}, "unknown. None is taken"),
    "link": ({"chain": (("{}:nothing", {}),)}, "makes a NoneType, not a gradient trans"),
}


def test_an_array_of_an_nnx_module_is_a_constant(folder):
    made = job.prepare(config.read(settings(folder, "Constant")))
    gradient = jax.grad(lambda p: made.loss_fn(p, made.batch).mean())(made.params)
    assert not made.model_state and list(made.params) == ["inner"]
    kernel = np.abs(gradient["inner"]["kernel"]).sum(1)
    assert kernel[0] == 0 and (kernel[1:] > 0).all()


def test_a_training_pass_drops_whatever_its_parameter_is_called(folder):
    made = job.prepare(config.read(settings(folder, "Deterministic")))
    key = jax.random.key(0)
    first, second = (made.loss_fn(made.params, made.batch, k) for k in (key, key))
    other = made.loss_fn(made.params, made.batch, jax.random.key(1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("framework", ["haiku", "equinox"])
def test_nets_of_other_frameworks_keep_their_state(framework, tmp_path):
    pytest.importorskip(framework)
    file = Path(__file__).parent.parent / "examples/other_frameworks/config.py"
    made = config_files.load(f"{file}:{framework}").config()
    made.update({"model": {**made.model, "width": 4}, "estimator": {"num_samples": 2}})
    made.update({"batch_size": 8, "num_steps": 1, "log_every": 1, "checkpoint_every": 1})
    first = job.prepare(config.read(made.to_dict())).model_state
    fit(made, tmp_path / "run", say=print)
    last = load(tmp_path / "run").variables[framework]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first[framework], last)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_what_is_ones_own_is_one_line(mistake, folder):
    changes, message = MISTAKES[mistake]
    place = f"{folder}/mine.py"
    changes = json.dumps(changes).replace("{}:", f"{place}:")
    changes = json.loads(changes.replace("{}/", f"{folder}/"))
    with pytest.raises(ConfigError, match=message) as caught:
        job.prepare(config.read({**settings(folder), **changes}))
    assert "\n" not in str(caught.value)


def test_an_error_of_the_file_has_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\nimport nonesuch\n")
    with pytest.raises(ConfigError, match="bad.py, line 2: ModuleNotFoundError"):
        own.find(f"{tmp_path}/bad.py:Model", "config.model")


def test_what_cannot_be_read_again_is_one_line(folder, tmp_path):
    with pytest.raises(WorkdirError, match="holds no run with checkpoints"):
        load(tmp_path / "gone")
    fit(settings(folder), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    recorded["model"] = {"name": recorded["model"], "width": 9}
    (tmp_path / "run" / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(WorkdirError, match="of another model than its config"):
        load(tmp_path / "run")


def test_points_of_a_sweep_have_the_names_of_the_command_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = config_files.load("digits:smoke")
    flags = [
        "--config.estimator.num_samples=3",
        "--config.estimator=./mine.py:estimator",
        "--config.model=./mine.py:model",
        "--config.seed=4",
    ]
    parsed = file.config()
    with parsed.unlocked():
        del parsed.model
        parsed.model = "./theirs.py:model"  # a name, where others have a section
    assert command_line.named(parsed, flags) == ["--config.seed=4"]
    parsed.seed = 4
    made = sweeps._fresh(file, flags, parsed).to_dict()
    assert made["chain"][0] == (f"{tmp_path}/mine.py:estimator", "estimator")
    assert made["estimator"] == {"num_samples": 3} and made["seed"] == 4
    assert made["model"] == {"name": f"{tmp_path}/mine.py:model"}


# ------------------------------------------------------------------- from an empty folder


def command(name, *arguments, folder):
    code = f"from bpfree.commands import {name}; {name}()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def clean_environment():
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}


def test_the_example_is_launched_from_an_empty_folder(tmp_path):
    """The commands of its README: the config, and names on the command line."""
    for name in ("mine.py", "config.py"):
        (tmp_path / name).write_text((EXAMPLE / name).read_text())
    ended = command(
        "train", "--config=config.py", "--workdir=runs/spirals", folder=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout.split()[-1]) > 0.95
    ended = command("evaluate", "--workdir=runs/spirals", folder=tmp_path)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert json.loads(ended.stdout)["validation/accuracy"] > 0.95


def test_names_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text((EXAMPLE / "mine.py").read_text())
    ended = command(
        "train",
        "--config=digits:smoke",
        "--config.data=./mine.py:load",
        "--config.model.width=16",
        "--config.model=./mine.py:model",
        "--config.estimator=./mine.py:estimator",
        "--config.estimator.num_samples=3",
        "--config.loss=optax:softmax_cross_entropy_with_integer_labels",
        "--config.metrics=cross_entropy",
        "--workdir=run",
        folder=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"test cross_entropy \d\.\d{4}\n", ended.stdout)
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["model"] == {"name": f"{tmp_path}/mine.py:model", "width": 16}
    assert recorded["chain"][0] == [f"{tmp_path}/mine.py:estimator", "estimator"]
    assert recorded["estimator"] == {"num_samples": 3}
