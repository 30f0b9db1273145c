"""One run on many devices: the same numbers, and each device does its share."""

import re

import jax
import jax.flatten_util
import numpy as np
import pytest

from bpfree.training import ConfigError, config, fit, job, mesh, steps
from tests.test_training import small, standard_promotion
from tests.test_watch import grained

assert standard_promotion  # a fixture for every test of this module, too
MESHES = ("data:8", "sample:4,data:2")


# ----------------------------------------------------------------------------- the text


def test_text_of_a_mesh():
    assert mesh.parse("sample:4, data:2") == {"sample": 4, "data": 2}
    assert list(mesh.parse("data:2,sample:4")) == ["data", "sample"]
    assert mesh.parse("") == {} and mesh.make("data:1") is None
    made = mesh.make("data:4")
    assert made.shape == {"data": 4, "sample": 1} and made.size == 4


@pytest.mark.parametrize(
    "text, message",
    [
        ("models:2", "axis 'models' is unknown"),
        ("data:2,data:4", "names the axis 'data' twice"),
        ("data", "'data' must be an axis and a number of devices, such as 'data:4'"),
        ("data:0", "'data:0' must be an axis and a number"),
        ("data:-2", "'data:-2' must be"),
        ("data:4,sample:4", "asks for 16 devices, and there are 8 cpu devices"),
    ],
)
def test_a_mesh_that_cannot_be(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        mesh.make(text)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mesh": 8}, "config.mesh=8 has the wrong type: text is wanted"),
        ({"mesh": "data:8", "batch_size": 12}, "12 does not divide over the 8 devices"),
        ({"mesh": "sample:4"}, "2 draws of 1 samples do not divide over 4 devices"),
        ({"mesh": "model:7"}, "no parameter whose last axis they divide"),
        (
            {"mesh": "sample:2", "chain": (("backprop", {}), ("sgd", "estimator"))},
            "'backprop' has no samples to spread",
        ),
    ],
)
def test_a_config_that_does_not_fit_its_mesh(changes, message):
    if "chain" in changes:
        changes["estimator"] = {"learning_rate": 0.1}
    with pytest.raises(ConfigError, match=message):
        job.prepare(config.read(small(**changes)))


# --------------------------------------------------------------------------- the numbers


def parameters(result):
    return np.asarray(jax.flatten_util.ravel_pytree(result.params)[0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return parameters(fit(eight(), tmp_path_factory.mktemp("alone")))


def eight(**changes):
    estimator = {"num_samples": 8, "sigma": 0.05}
    return small(estimator=estimator, data={"name": "digits"}, **changes)


def test_a_run_on_a_mesh_ends_as_one_device_does(alone, tmp_path):
    """Begun on a mesh and finished on one device."""
    begun = fit(eight(mesh="sample:4,data:2"), tmp_path, stop_after=8)
    assert len(begun.params["Dense_0"]["kernel"].sharding.device_set) == 8
    last = fit(eight(), tmp_path)
    assert last.resumed_from == 8 and last.steps == 20
    np.testing.assert_allclose(parameters(last), alone, rtol=1e-4, atol=1e-5)


def test_parameters_and_their_moments_are_cut_over_the_axis_model(tmp_path):
    """And a run that ends on one device goes on from them."""
    momentum = (("node_perturbation", "estimator"), ("adam", {"learning_rate": 1e-3}))
    changes = {"chain": momentum, "data": {"name": "digits"}}
    changes["estimator"] = {"num_samples": 8, "sigma": 0.05}
    alone = parameters(fit(small(**changes), tmp_path / "alone"))
    cut = small(mesh="sample:2,data:2,model:2", **changes)
    begun = fit(cut, tmp_path / "cut", stop_after=8)
    kernel = begun.params["Dense_0"]["kernel"]
    moment = begun.opt_state[1][0].mu["Dense_0"]["kernel"]
    for array in (kernel, moment):
        half = (kernel.shape[0], kernel.shape[1] // 2)
        assert array.addressable_data(0).shape == half
    last = fit(small(**changes), tmp_path / "cut")
    assert last.resumed_from == 8
    np.testing.assert_allclose(parameters(last), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_batches_read_one_by_one_are_spread_too(tmp_path):
    pytest.importorskip("grain")
    one = fit(grained(), tmp_path / "one", stop_after=4)
    many = fit({**grained(), "mesh": "data:4"}, tmp_path / "many", stop_after=4)
    np.testing.assert_allclose(parameters(many), parameters(one), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ the compiled program


def program(text, num_samples=16, hidden=(64,), **estimator):
    """One training step for one device of the mesh; the loop over samples runs once."""
    settings = config.read(
        small(
            mesh=text,
            data={"name": "digits"},
            model={"name": "mlp", "hidden": hidden},
            batch_size=64,
            estimator={
                "num_samples": num_samples,
                "chunk_size": num_samples,
                "pairing": "clean",
                "sigma": 0.05,
                **estimator,
            },
            chain=(("likelihood_ratio", "estimator"), ("sgd", {"learning_rate": 0.1})),
        )
    )
    made = job.prepare(settings)
    devices = made.task.mesh
    state = steps.init_state(made.task, made.params, made.model_state)
    here = mesh.columns(devices, 64)
    batch = {k: v[None, here] for k, v in steps.without_state(made.batch).items()}
    batch = mesh.assemble(devices, 64, batch)
    lowered = steps.lowered(
        lambda state, batch: steps.count_steps(
            made.task, state, 1, lambda i: {k: v[i] for k, v in batch.items()}
        ),
        mesh.put(devices, state),
        batch,
    )
    return made, lowered.compile()


@pytest.fixture(scope="module")
def programs():
    return {text: program(text) for text in ("", *MESHES)}


def flops(compiled):
    return compiled.cost_analysis()["flops"]


def test_each_device_does_its_share(programs):
    """(clean + pull) / data + noisy / devices, per device."""
    whole = flops(programs[""][1])
    half = flops(program("", num_samples=8)[1])
    noisy = 2 * (whole - half)
    for text in MESHES:
        axes = {"sample": 1, "data": 1} | mesh.parse(text)
        share = (whole - noisy) / axes["data"] + noisy / 8
        assert flops(programs[text][1]) == pytest.approx(share, rel=0.1), text


def test_memory_of_a_device_falls(programs):
    temp = {k: p.memory_analysis().temp_size_in_bytes for k, (_, p) in programs.items()}
    assert max(temp[text] for text in MESHES) < temp[""] / 3, temp


def reduced(compiled):
    """Bytes that a device hands to all-reduces."""
    lines = re.findall(r"= (.*?) all-reduce(?:-start)?\(", compiled.as_text())
    shapes = [s for line in lines for s in re.findall(r"f32\[([\d,]*)\]", line)]
    return 4 * sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)


def size_of(made):
    return sum(p.nbytes for p in jax.tree.leaves(made.params))


@pytest.mark.parametrize("text", MESHES)
def test_devices_exchange_sums_only(programs, text):
    """Gradients and losses, each once on any mesh; no activation."""
    made, compiled = programs[text]
    for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in compiled.as_text()
    losses = 64 * 4
    assert 0 < reduced(compiled) <= size_of(made) + losses


def test_devices_add_up_gradients_where_signals_are_larger():
    made, compiled = program("sample:8", hidden=(16, 16, 16))
    signals = 64 * (3 * 16 + 10) * 4
    assert size_of(made) < signals / 1.5
    mean_square = 4  # of what noise adds to the losses, for a fault
    assert 0 < reduced(compiled) <= size_of(made) + mean_square
