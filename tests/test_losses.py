"""Losses and metrics of a config: values, the user's own, and which run is best."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.sweeps import report
from bpfree.training import (
    ConfigError,
    WorkdirError,
    config,
    config_files,
    fit,
    job,
    load,
    objective,
)
from bpfree.training.loss_functions import absolute_error, squared_error
from bpfree.training.trained import scores
from tests.test_sweeps import record as finished
from tests.test_training import ROOT, lines, standard_promotion

assert standard_promotion  # a fixture for every test of this module, too

MINE = """
import jax
import jax.numpy as jnp
import numpy as np


def line(num=60):
    x = np.linspace(-1, 1, num)[:, None]
    return {"x": x, "label": 3 * x[:, 0] + 1}


def plane(num=60):
    x = np.random.default_rng(0).normal(size=(num, 3))
    return {"x": x, "label": x @ np.arange(6.0).reshape(3, 2)}


def linear(num_outputs, num_inputs=1):
    def init(key, x):
        return {"w": jnp.zeros((x.shape[-1], num_outputs)), "b": jnp.zeros(num_outputs)}

    return init, lambda params, x: x @ params["w"] + params["b"][None]


def fourth(outputs, label, power=4):
    return (outputs[:, 0] - label) ** power


def wrong(outputs, label):
    return (outputs - label[None]) ** 2


def mean(outputs, label):
    return fourth(outputs, label).mean()


def whole(params, batch, key, model, scale=1.0):
    noise = 0.01 * jax.random.normal(key, batch["label"].shape)
    outputs = model.apply({"params": params}, batch["x"])[:, 0]
    return scale * (outputs - batch["label"] + noise) ** 2


def within(outputs, label, tolerance=0.5):
    return abs(outputs[:, 0] - label) < tolerance
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("losses")
    (folder / "mine.py").write_text(MINE)
    return folder


def settings(folder, data="line", **changes):
    return {
        "seed": 0,
        "data": f"{folder}/mine.py:{data}",
        "model": f"{folder}/mine.py:linear",
        "chain": (("backprop", {}), ("adam", {"learning_rate": 0.1})),
        "batch_size": 12,
        "num_steps": 200,
        "log_every": 100,
        "checkpoint_every": 200,
        "loss": "squared_error",
        **changes,
    }


def own(folder, name, **more):
    return {"name": f"{folder}/mine.py:{name}", **more}


# ------------------------------------------------------------------------------- values


def test_values_entry_by_entry():
    outputs, label = jnp.array([[1.0], [4.0]]), jnp.array([2.0, 2.0])
    np.testing.assert_array_equal(squared_error(outputs, label), [1, 4])
    np.testing.assert_array_equal(absolute_error(outputs, label), [1, 2])
    np.testing.assert_array_equal(
        squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])), [[1, 4]]
    )
    with pytest.raises(ValueError, match=r"shape \(2, 1\), and the labels \(3,\)"):
        squared_error(outputs, jnp.zeros(3))


def test_the_mean_of_an_example_or_one_for_each_of_its_labels():
    outputs, label = jnp.arange(6.0).reshape(2, 3), jnp.zeros((2, 3))
    each, mean = (objective.of_examples(squared_error, n) for n in ("step", "example"))
    np.testing.assert_array_equal(each(outputs, label), outputs**2)
    np.testing.assert_allclose(mean(outputs, label), [5 / 3, 50 / 3])


# ---------------------------------------------------------------------------- regression


@pytest.mark.parametrize("data", ["line", "plane"])
def test_a_regression_is_trained_measured_and_read_again(data, folder, tmp_path):
    """Both are linear maps, which the model can be exactly."""
    result = fit(settings(folder, data, num_steps=400), tmp_path / "run")
    assert list(result.test) == ["absolute_error"] and result.test["absolute_error"] < 0.1
    _, *logs, summary = lines(tmp_path / "run")
    assert logs[0]["validation/absolute_error"] > logs[-1]["validation/absolute_error"]
    assert summary["test/absolute_error"] == result.test["absolute_error"]
    found = scores(load(tmp_path / "run"), "test")
    trained = load(tmp_path / "run")
    part = trained.job.data.test
    errors = trained.model.apply(trained.variables, part["x"])
    errors = np.asarray(errors).reshape(part["label"].shape) - part["label"]
    assert found["test/absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert found["test/squared_error"] == pytest.approx((errors**2).mean(), rel=1e-5)


def test_a_perturbation_trains_it_too(folder, tmp_path):
    chain = (("node_perturbation", {"num_samples": 8}), ("adam", {"learning_rate": 0.1}))
    assert fit(settings(folder, chain=chain), tmp_path).test["absolute_error"] < 0.1


def test_the_example_of_a_regression_learns(tmp_path):
    """Its curve has noise of standard deviation 0.1, of mean size 0.08."""
    made = config_files.load(str(ROOT / "examples/own_regression/config.py")).config()
    result = fit(made, tmp_path)
    assert list(result.test) == ["explained", "absolute_error"]
    assert result.test["explained"] > 0.95 and result.test["absolute_error"] < 0.12


# ------------------------------------------------------------------------- of one's own


def test_a_loss_of_ones_own_with_an_argument_is_the_metric(folder, tmp_path):
    result = fit(settings(folder, loss=own(folder, "fourth", power=2)), tmp_path / "a")
    named = fit(settings(folder), tmp_path / "b")
    np.testing.assert_allclose(result.params["w"], named.params["w"], rtol=1e-6)
    assert list(result.validation) == ["loss"]
    found = scores(load(tmp_path / "a"), "validation")
    assert found["validation/fourth"] == result.validation["loss"]


def test_a_whole_loss_function_gets_key_and_model(folder, tmp_path):
    result = fit(settings(folder, loss=own(folder, "whole")), tmp_path)
    assert list(result.test) == ["loss"] and result.test["loss"] < 0.01
    np.testing.assert_allclose(result.params["w"], [[3.0]], atol=0.1)
    np.testing.assert_allclose(result.params["b"], [1.0], atol=0.1)


def test_any_function_that_can_be_imported(folder):
    made = job.prepare(config.read(settings(folder, "plane", loss="optax:huber_loss")))
    label = made.batch["label"]
    expected = np.where(np.abs(label) < 1, label**2 / 2, np.abs(label) - 0.5).mean(1)
    np.testing.assert_allclose(made.loss_fn(made.params, made.batch), expected, rtol=1e-5)


def test_metrics_keep_their_order_and_the_first_chooses(folder, tmp_path):
    metrics = (own(folder, "within", lower_is_better=False), "squared_error", "loss")
    result = fit(settings(folder, metrics=metrics), tmp_path)
    assert list(result.test) == ["within", "squared_error", "loss"]
    assert result.test["within"] == 1 and result.test["squared_error"] < 0.01
    assert result.test["loss"] == result.test["squared_error"]
    found = job.find_metrics(config.read(settings(folder, metrics=metrics)))
    assert [m.lower for m in found] == [False, True, True]


# ----------------------------------------------------------------------------- mistakes

MISTAKES = {
    "name": ({"loss": "squared"}, "config.loss: 'squared' is unknown.*'squared_error'"),
    "type": ({"loss": 3}, "config.loss=3 has the wrong type"),
    "argument": (
        {"loss": {"name": "squared_error", "p": 2}},
        "config.loss: argument 'p'",
    ),
    "labels": ({"loss": "cross_entropy"}, "whole numbers, not float32; config.loss='squ"),
    "shape": (
        {"loss": "{}:wrong"},
        r"outputs \(12, 1\) and labels \(12,\) has shape \(12",
    ),
    "of all": ({"loss": "{}:mean"}, "mean gives one number for the whole batch"),
    "metric": (
        {"metrics": "acuracy"},
        "config.metrics: 'acuracy' is unknown.*'accuracy'",
    ),
    "direction": ({"metrics": "{}:within"}, "say of .*:within whether lower is better"),
    "metric type": ({"metrics": [3]}, "config.metrics=3 has the wrong type"),
    "no function": ({"loss": "{}:gone"}, "config.loss: function or class in .*'gone'"),
    "noise": (
        {"loss": "{}:whole", "objective": {"noise": "weight"}},
        "config.objective: config.loss has an objective of its own",
    ),
    "energy": (
        {"data": {"name": "digits"}, "model": {"name": "hopfield", "hidden": [4]}},
        "config.loss: this model has an objective of its own",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_losses_is_one_line(mistake, folder):
    changes, message = MISTAKES[mistake]
    changes = json.loads(json.dumps(changes).replace("{}:", f"{folder}/mine.py:"))
    with pytest.raises(ConfigError, match=message) as caught:
        job.prepare(config.read({**settings(folder), **changes}))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------ sweeps follow


def test_the_lowest_error_is_the_best_point():
    records = {}
    for name, error in (("n", np.nan), ("a", 0.3), ("b", 0.1), ("c", 0.2)):
        made = finished(name, 0.0, rate=name)
        chosen = {"metric": "absolute_error", "lower_is_better": True}
        errors = {"validation/absolute_error": error, "test/absolute_error": error}
        records[name] = {**made, **chosen, **errors}
    found = report.lines(records)
    assert [line.overrides["rate"] for line in found] == ["b", "c", "a", "n"]
    assert "points/b/config.json" in report.best_command(found, Path("/s"))
    mixed = {**records, "d": finished("d", 0.9, rate="d")}
    with pytest.raises(WorkdirError, match="different metrics, absolute_error, accuracy"):
        report.lines(mixed)
