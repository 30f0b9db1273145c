"""Fine-tuning: what a run takes from an earlier one, what it fixes, what it refuses."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree.models import mlp
from bpfree.training import ConfigError, config, fit, job

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
        ({"frozen": (0,)}, "config.frozen: module 0 is unknown.*Dense_0"),
        ({"fresh": "Dense_1"}, "fresh='Dense_1' has the wrong type"),
        ({"workdir": ""}, "^config.pretrained.workdir is missing"),
        ({"workdir": "/nowhere/at"}, "^config.pretrained.workdir: /nowhere/at holds no"),
        (
            {"model": {"name": "mlp", "hidden": (7,)}},
            r"Dense_0 has the shapes .*64, 7.* here and .*64, 6.*pretrained.fresh",
        ),
        (
            {"model": {"name": "mlp", "hidden": (6,), "adapters": 2}},
            "down_0 has the shapes .* and none in",
        ),
        ({"model": {"name": "hopfield", "hidden": (6,)}}, "layer_1 has the shapes"),
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
