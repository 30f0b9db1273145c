"""The launcher's options: a profile, curves for TensorBoard, batches from Grain."""

import gzip
import json
import shutil
import struct
import sys

import jax
import numpy as np
import pytest

import bpfree
from bpfree.data import one_by_one
from bpfree.training import ConfigError, config, feed, fit, job, steps
from tests.test_training import bits, lines, standard_promotion
from tests.test_workdir_faults import quick

assert standard_promotion  # a fixture for every test of this module, too


@pytest.mark.parametrize("length", [4, 12])
def test_a_profile_opens_in_tensorboard_and_perfetto(length, tmp_path):
    """Of the second block, or the only one."""
    fit(quick(), tmp_path, stop_after=length, profile=True)
    (planes,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    assert planes.stat().st_size > 1000
    (trace,) = tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(e.get("dur", 0) > 0 for e in events)
    assert len(lines(tmp_path)) == 1 + length // 4


def scalars(folder):
    """(tag, step, value) of an event file: records of length, check, content, check."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            content = content[16 + size :]
    return found


def test_curves_for_tensorboard(tmp_path, monkeypatch):
    files = pytest.importorskip("tensorboardX.event_file_writer")
    # Both runs begin within one second, which is what names of event files tell apart.
    monkeypatch.setattr(files.time, "time", lambda: 1_700_000_000.5)
    fit(quick(), tmp_path, stop_after=8, tensorboard=True)
    fit(quick(), tmp_path, tensorboard=True)
    found = scalars(tmp_path / "tensorboard")
    for name in ("train/loss", "validation/accuracy", "steps_per_second"):
        logged = [(x["step"], x[name]) for x in lines(tmp_path) if x["kind"] == "log"]
        written = [(step, value) for tag, step, value in found if tag == name]
        np.testing.assert_allclose(written, logged, rtol=1e-6)


class Recorded:
    """Stands for the module wandb: keeps what it is told."""

    class errors:
        class Error(Exception):
            pass

    def __init__(self):
        self.runs, self.logged, self.ended = [], [], 0

    def init(self, **options):
        if options["project"] == "out of reach":
            raise self.errors.Error("no API key")
        self.runs.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.ended += 1


def test_curves_for_weights_and_biases(tmp_path, monkeypatch):
    """One run of the project, which goes on, with every log point and the test."""
    module = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", module)
    fit(quick(), tmp_path, stop_after=8, wandb="digits")
    result = fit(quick(), tmp_path, wandb="digits")
    first, second = module.runs
    assert first["project"] == "digits" and first["config"]["batch_size"] == 16
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert module.ended == 2
    logs = [x for x in lines(tmp_path) if x["kind"] == "log"]
    seen = {step: values for step, values in module.logged if "train/loss" in values}
    assert list(seen) == [x["step"] for x in logs]
    assert all(seen[x["step"]]["train/loss"] == x["train/loss"] for x in logs)
    assert module.logged[-1] == (20, {"test/accuracy": result.test["accuracy"]})
    fit(quick(), tmp_path, wandb="digits")  # finished: nothing to show
    assert len(module.runs) == 2
    with pytest.raises(ConfigError, match="--wandb=out of reach: no API key .*offline"):
        fit(quick(), tmp_path / "other", wandb="out of reach")


@pytest.mark.parametrize("module", ["tensorboardX", "wandb", "grain"])
def test_a_missing_extra_is_told_before_anything_is_written(
    module, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    changed = quick()
    if module == "grain":
        changed["data"]["loader"] = "grain"
    loggers = {
        "tensorboard": module == "tensorboardX",
        "wandb": "p" * (module == "wandb"),
    }
    with pytest.raises(ConfigError, match=f"(?i)needs {module}.*pip install"):
        fit(changed, tmp_path / "run", **loggers)
    assert not list(tmp_path.rglob("metrics.jsonl"))


# ------------------------------------------------------------------------------- Grain


def grained():
    return quick() | {"data": {"name": "digits", "loader": "grain", "pixel_noise": 0.1}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    pytest.importorskip("grain")
    workdir = tmp_path_factory.mktemp("grained")
    return workdir, fit(grained(), workdir)


def test_a_run_fed_by_grain_resumes_with_the_same_bits(undisturbed, tmp_path):
    straight, expected = undisturbed
    workdir = tmp_path / "run"
    fit(grained(), workdir, stop_after=8)
    resumed = fit(grained(), workdir)
    assert resumed.resumed_from == 8 and bits(resumed) == bits(expected)

    def logs(folder):
        return [(x["step"], x["train/loss"]) for x in lines(folder) if x["kind"] == "log"]

    assert logs(workdir) == logs(straight)


def test_the_feed_is_where_the_checkpoint_was_not_where_it_was_read_to(
    undisturbed, tmp_path
):
    """The previous checkpoint holds its own position."""
    _, expected = undisturbed
    workdir = tmp_path / "run"
    fit(grained(), workdir, stop_after=16)
    shutil.rmtree(workdir / "checkpoints" / "16")
    resumed = fit(grained(), workdir)
    assert resumed.resumed_from == 8 and bits(resumed) == bits(expected)


def test_another_loader_is_another_run(undisturbed):
    workdir, _ = undisturbed
    other = grained()
    del other["data"]["loader"]
    with pytest.raises(ConfigError, match=r"these differ: config\.data\.loader"):
        fit(other, workdir)


def test_an_epoch_of_grain_visits_every_example_once(monkeypatch):
    """And epochs differ; a batch goes on where the last one ended."""
    pytest.importorskip("grain")
    made = job.prepare(config.read(grained()))
    rows = np.arange(10, dtype=np.int32)
    part = {"x": np.stack([rows.astype(np.float32)] * 64, 1), "label": rows}
    seen = []

    def spy(task, state, batch):
        jax.debug.callback(lambda a: seen.append(np.asarray(a)), batch["label"])
        return state, jax.numpy.zeros_like(bpfree.value(state.opt_state))

    monkeypatch.setattr(steps, "train_step", spy)
    task = made.task._replace(batch_size=4)
    batch = {k: v[:4] for k, v in part.items()}
    source = feed.from_grain(task, one_by_one(part), batch)
    state = steps.init_state(task, made.params, made.model_state)
    program, advance = source.lower(10, state)
    advance(program.compile(), state, 10)
    jax.effects_barrier()
    order = np.concatenate([a.ravel() for a in seen])
    assert len(order) == 40
    epochs = order.reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_unknown_loader():
    changed = quick()
    changed["data"]["loader"] = "grian"
    with pytest.raises(ConfigError, match="'grian'.*Did you mean 'grain'"):
        job.prepare(config.read(changed))


def test_alignment_is_logged_and_changes_nothing(tmp_path):
    plain = fit(quick(), tmp_path / "plain")
    settings = quick() | {"diagnostics": {"every": 8, "repeats": 2}}
    looked = fit(settings, tmp_path / "looked")
    assert bits(looked) == bits(plain)
    found = [r for r in lines(tmp_path / "looked") if r["kind"] == "diagnostics"]
    assert [r["step"] for r in found] == list(range(8, looked.steps + 1, 8))
    for record in found:
        assert 0 < record["cosine"] <= 1.001 and record["cost"] > 1
        assert "(all)" in record["cosine_of"] and len(record["cosine_of"]) > 2


@pytest.mark.parametrize(
    "section, message",
    [
        ({"often": 1}, "often"),
        ({"every": -1}, "every=-1"),
        ({"every": 1, "repeats": 1}, "at least 2"),
        (3, "wrong type"),
    ],
)
def test_bad_diagnostics_are_told(section, message):
    settings = quick() | {"diagnostics": section}
    with pytest.raises(ConfigError, match=message):
        config.read(settings)


def test_energies_have_no_diagnostics(tmp_path):
    model = {"name": "hopfield", "hidden": [4]}
    settings = quick() | {"model": model, "diagnostics": {"every": 4}}
    with pytest.raises(ConfigError, match="has an energy"):
        fit(settings, tmp_path)
