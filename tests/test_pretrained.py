"""Fine-tuning: what a run takes from an earlier one, what it fixes, what it refuses."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree.models import mlp
from bpfree.training import ConfigError, config, fit, job, own

ADAPTERS = ("down_0", "up_0")


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Optax's own Adam mixes int32 and int64 under x64; strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def settings(**changes):
    return {
        "seed": 0,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": (6,)},
        "batch_size": 8,
        "num_steps": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "chain": (("backprop", {}), ("adam", {"learning_rate": 0.01})),
        **changes,
    }


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("earlier")
    return workdir, fit(settings(), workdir).params


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def begun(workdir, model=None, frozen=(), **section):
    changes = {"seed": 1, "pretrained": {"workdir": str(workdir), **section}}
    changes["frozen"] = frozen
    if model:
        changes["model"] = model
    return settings(**changes)


def test_frozen_modules_keep_the_earlier_values_and_fresh_ones_do_not(earlier, tmp_path):
    workdir, before = earlier
    made = begun(workdir, fresh=("Dense_1",), frozen=("Dense_0",))
    decay = {"learning_rate": 0.01, "weight_decay": 0.5}
    made["chain"] = (("backprop", {}), ("adamw", decay))
    start = job.prepare(config.read(made))
    jax.tree.map(
        np.testing.assert_array_equal, start.params["Dense_0"], before["Dense_0"]
    )
    assert not np.allclose(start.params["Dense_1"]["kernel"], before["Dense_1"]["kernel"])
    after = fit(made, tmp_path).params
    same(after["Dense_0"], before["Dense_0"])
    moved = after["Dense_1"]["kernel"] - start.params["Dense_1"]["kernel"]
    assert np.abs(moved).max() > 0


def test_without_frozen_modules_all_of_them_move(earlier, tmp_path):
    workdir, before = earlier
    after = fit(begun(workdir), tmp_path).params
    for name in before:
        moved = np.abs(after[name]["kernel"] - before[name]["kernel"]).max()
        assert 0 < moved < 0.1  # two steps of 0.01 from there


def test_adapters_begin_as_the_net_without_them_and_alone_have_nodes(earlier):
    workdir, before = earlier
    model = {"name": "mlp", "hidden": (6,), "adapters": 2}
    made = begun(workdir, model, fresh=ADAPTERS, frozen=("Dense_0",))
    ready = job.prepare(config.read(made))
    x = ready.batch["x"]
    outputs = ready.task.model.apply({"params": ready.params}, x)
    plain = mlp.Model(10, hidden=(6,)).apply({"params": before}, x)
    np.testing.assert_allclose(outputs, plain, rtol=1e-5)
    found = bpfree.blocks(ready.loss_fn, ready.params, ready.batch)
    names = [block.name for block in found]
    assert names == ["down_0", "up_0", "Dense_1", "(loss)"]
    assert sum(block.carried for block in found) == 0
    gradient = jax.grad(lambda p: ready.loss_fn(p, ready.batch).mean())(ready.params)
    assert all(jnp.all(g == 0) for g in jax.tree.leaves(gradient["Dense_0"]))


def test_running_statistics_come_along(tmp_path):
    net = {"name": "convnet", "channels": (2,), "norm": "batch", "image": (8, 8, 1)}
    before = fit(settings(model=net), tmp_path)
    ready = job.prepare(config.read(begun(tmp_path, net, fresh=("Dense_0",))))
    same(ready.model_state, before.model_state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"fresh": ("Dense_7",)}, "module 'Dense_7' is unknown.*Dense_0"),
        ({"frosen": ()}, "entry 'frosen' is unknown.*workdir"),
        ({"frozen": ("Dense_7",)}, "config.frozen: module 'Dense_7' is unknown.*Dense_0"),
        ({"frozen": "Dense_0"}, "config.frozen='Dense_0' has the wrong type"),
        ({"frozen": (0,)}, r"config.frozen=\(0,\) has the wrong type: a list is wanted"),
        ({"fresh": "Dense_1"}, "fresh='Dense_1' has the wrong type"),
        ({"workdir": ""}, "^config.pretrained.workdir is missing"),
        ({"workdir": "/nowhere/at"}, "^config.pretrained.workdir: /nowhere/at holds no"),
        (
            {"model": {"name": "mlp", "hidden": (7,)}},
            r"params/Dense_0/bias has the shape \(7,\) here and \(6,\) in the run in .*; "
            "name Dense_0 in config.pretrained.fresh",
        ),
        (
            {"model": {"name": "mlp", "hidden": (6,), "adapters": 2}},
            r"params/down_0/kernel has the shape \(64, 2\) here and none in the run in",
        ),
        (
            {"model": {"name": "hopfield", "hidden": (6,)}},
            r"params/layer_1/bias has the shape \(6,\) here and none in the run",
        ),
    ],
)
def test_what_does_not_fit_is_said(earlier, change, message):
    with pytest.raises(ConfigError, match=message):
        made = begun(**{"workdir": earlier[0], **change})
        job.prepare(config.read(made))


def test_energies_cannot_be_frozen(earlier):
    model = {"name": "hopfield", "hidden": (6,)}
    layers = ("layer_1", "readout")
    with pytest.raises(ConfigError, match=r"frozen: this model has an energy"):
        job.prepare(config.read(begun(earlier[0], model, fresh=layers, frozen=layers)))


def test_damage_is_seen(earlier, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(earlier[0], copy)
    (copy / "checkpoints" / "2" / "state" / "stray").write_text("")
    with pytest.raises(ConfigError, match="is damaged: state/stray does not belong"):
        job.prepare(config.read(begun(copy)))


PORT = """
import numpy as np


def load(width: int = 6, scale=1.0, **more):
    kernel = scale * np.ones((64, width), np.float64)
    dense = {"kernel": kernel, "bias": np.zeros(width)}
    return {"params": {"Dense_0": dense, "unused": {"kernel": kernel}, **more}}


def wrong():
    return [1, 2]


def gone():
    raise OSError("no such weights")
"""


@pytest.fixture
def port(tmp_path):
    path = tmp_path / "port.py"
    path.write_text(PORT)
    return str(path)


def test_a_function_gives_the_values_to_begin_from(port):
    section = {"name": f"{port}:load", "scale": 0.25, "fresh": ("Dense_1",)}
    ready = job.prepare(config.read(settings(pretrained=section)))
    without = job.prepare(config.read(settings()))
    assert set(ready.params) == {"Dense_0", "Dense_1"}  # what is unused is left out
    kernel = ready.params["Dense_0"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, np.full((64, 6), 0.25))
    same(ready.params["Dense_1"], without.params["Dense_1"])


def test_a_name_alone_is_a_function_too(port):
    with pytest.raises(ConfigError, match="params/Dense_1/bias .* and none in"):
        job.prepare(config.read(settings(pretrained=f"{port}:load")))


def test_running_statistics_of_a_function(tmp_path):
    model = {"name": "convnet", "channels": (2,), "norm": "batch", "image": (8, 8, 1)}
    ready = job.prepare(config.read(settings(model=model)))
    twice = jax.tree.map(
        lambda a: 2 * np.asarray(a) + 1, {"params": ready.params, **ready.model_state}
    )
    path = tmp_path / "given.py"
    path.write_text("def load():\n    return VALUES\n")
    own.find(f"{path}:load", "config.pretrained").__globals__["VALUES"] = twice
    begun = job.prepare(config.read(settings(model=model, pretrained=f"{path}:load")))
    same({"params": begun.params, **begun.model_state}, twice)


def test_params_that_are_no_modules(tmp_path):
    path = tmp_path / "pair.py"
    path.write_text(
        "import jax.numpy as jnp\n"
        "def model(num_classes):\n"
        "    zeros = [jnp.zeros((64, num_classes)), jnp.zeros(num_classes)]\n"
        "    apply = lambda p, x: x.reshape(len(x), -1) @ p[0] + p[1][None]\n"
        "    return lambda key, x: zeros, apply\n"
        "def load(size=10):\n"
        "    return {'params': [jnp.ones((64, 10)), jnp.arange(float(size))]}\n"
    )
    made = settings(model=f"{path}:model", pretrained={"name": f"{path}:load"})
    ready = job.prepare(config.read(made))
    same(ready.params, [np.ones((64, 10)), np.arange(10)])
    made["pretrained"]["size"] = 9
    with pytest.raises(
        ConfigError, match=r"params/1 has the shape \(10,\) here and \(9,"
    ):
        job.prepare(config.read(made))


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "load"}, "name='load' must say where the function is"),
        ({"name": 3}, "name=3 has the wrong type"),
        ({"name": "PORT:lod"}, "'lod' is unknown. Did you mean 'load'"),
        ({"name": "PORT:load", "width": "six"}, "argument width='six' is a str"),
        ({"name": "PORT:wrong"}, "wrong gives a list without 'params'"),
        ({"name": "PORT:gone"}, "OSError: no such weights"),
        (
            {"name": "PORT:load", "width": 7, "fresh": ("Dense_1",)},
            r"params/Dense_0/bias has the shape \(6,\) here and \(7,\) in .*port.py:load",
        ),
        ({"fresh": ("Dense_1",)}, "pretrained.workdir is missing.*or .*pretrained.name"),
    ],
)
def test_what_a_function_cannot_give_is_said(port, section, message):
    if isinstance(section.get("name"), str):
        section = section | {"name": section["name"].replace("PORT", port)}
    with pytest.raises(ConfigError, match=message):
        job.prepare(config.read(settings(pretrained=section)))
