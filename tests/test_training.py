"""The launcher: resumes bit for bit, stops on faults, leaves a complete record."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import bpfree
from bpfree.training import ConfigError, TrainingFault, fit, metrics
from bpfree.training.interrupt import Interrupted

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Optax's own Adam mixes int32 and int64 under x64; strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def small(**changes):
    return {
        "seed": 3,
        "data": {"name": "digits", "shift": 0.5, "pixel_noise": 0.1},
        "model": {"name": "mlp", "hidden": (8,)},
        "batch_size": 16,
        "num_steps": 20,
        "log_every": 4,
        "checkpoint_every": 8,
        "estimator": {"num_samples": 2, "sigma": 0.05},
        "chain": (("likelihood_ratio", "estimator"), ("adam", {"learning_rate": 0.01})),
        **changes,
    }


def bits(result):
    leaves = jax.tree.leaves((result.params, result.model_state, result.opt_state))
    keys = jax.dtypes.prng_key
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x
        for x in leaves
    ]
    return [np.asarray(x).tobytes() for x in leaves]


def lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, fit(small(), workdir)


def test_record_is_complete(undisturbed):
    workdir, result = undisturbed
    header, *logs, summary = lines(workdir)
    assert header["kind"] == "header"
    assert header["config"] == json.loads((workdir / "config.json").read_text())
    assert len(header["data"]["sha256"]) == 64 and header["data"]["train"] == 1085
    assert {"jax", "optax", "bpfree"} <= set(header["versions"])
    assert header["device"]["platform"] == jax.default_backend()
    assert [x["step"] for x in logs] == [4, 8, 12, 16, 20]
    assert all(
        x["perturbations_per_second"] > 0 and np.isfinite(x["train/loss"]) for x in logs
    )
    assert summary["test/accuracy"] == result.test["accuracy"]
    assert (workdir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_run_ends_with_the_same_bits(undisturbed, tmp_path):
    straight, expected = undisturbed
    first = fit(small(), tmp_path, stop_after=5)
    assert first.steps == 8 and not any(x["kind"] == "summary" for x in lines(tmp_path))
    result = fit(small(), tmp_path)
    assert (result.resumed_from, result.steps) == (8, 20)
    assert bits(result) == bits(expected)
    assert logged(tmp_path) == logged(straight)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_same_call_goes_on(
    signum, undisturbed, tmp_path, monkeypatch
):
    _, expected = undisturbed
    write, handlers = metrics.write, [signal.getsignal(signum)]

    def write_and_signal(workdir, kind, record):
        write(workdir, kind, record)
        if kind == "log" and record["step"] == 4:  # step 4 is no step of a checkpoint
            signal.raise_signal(signum)

    monkeypatch.setattr(metrics, "write", write_and_signal)
    with pytest.raises(Interrupted, match=f"{signum.name}: stopped and saved at step 4"):
        fit(small(), tmp_path)
    assert [signal.getsignal(signum)] == handlers
    monkeypatch.undo()
    result = fit(small(), tmp_path)
    assert result.resumed_from == 4 and bits(result) == bits(expected)


def logged(workdir):
    return [(x["step"], x["train/loss"]) for x in lines(workdir) if x["kind"] == "log"]


def test_log_points_behind_the_checkpoint_are_logged_again(undisturbed, tmp_path):
    straight, expected = undisturbed
    fit(small(), tmp_path, stop_after=8)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as a kill would leave it
        file.write(json.dumps({"kind": "log", "step": 12, "train/loss": -1.0}) + "\n")
        file.write('{"kind": "log", "st')
    assert bits(fit(small(), tmp_path)) == bits(expected)
    assert logged(tmp_path) == logged(straight)


def test_finished_run_is_not_trained_again(undisturbed):
    workdir, expected = undisturbed
    before = lines(workdir)
    again = fit(small(), workdir)
    assert again.steps == again.resumed_from == 20
    assert again.test["accuracy"] == expected.test["accuracy"]
    assert bits(again) == bits(expected)
    assert lines(workdir) == before


def test_another_config_is_not_resumed(undisturbed):
    workdir, _ = undisturbed
    other = small(seed=4, estimator={"num_samples": 4, "sigma": 0.05})
    with pytest.raises(
        ConfigError, match=r"config\.estimator\.num_samples, config\.seed"
    ):
        fit(other, workdir)


def test_log_points_may_be_moved_between_resumptions(undisturbed, tmp_path):
    _, expected = undisturbed
    fit(small(), tmp_path, stop_after=8)
    result = fit(small(log_every=5, checkpoint_every=5), tmp_path)
    assert [x["step"] for x in lines(tmp_path) if x["kind"] == "log"] == [
        4,
        8,
        10,
        15,
        20,
    ]
    assert bits(result) == bits(expected)


def test_seeds_differ(undisturbed, tmp_path):
    _, expected = undisturbed
    assert bits(fit(small(seed=4), tmp_path)) != bits(expected)


def test_fault_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    rate = {
        "schedules": [("constant_schedule", {"value": v}) for v in (0.01, 1e30)],
        "boundaries": [10],
    }
    diverging = small(
        chain=(
            ("likelihood_ratio", "estimator"),
            ("sgd", {"learning_rate": ("join_schedules", rate)}),
        )
    )
    with pytest.raises(
        TrainingFault, match="node 'Dense_.*not finite.*of step 8, is kept"
    ):
        fit(diverging, tmp_path)
    assert (tmp_path / "checkpoints" / "8").is_dir()
    assert not (tmp_path / "checkpoints" / "12").exists()
    assert lines(tmp_path)[-1]["step"] == 8
    resumed = fit(diverging, tmp_path, stop_after=8)
    assert resumed.resumed_from == 8
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(resumed.params))


NORMED = {"name": "convnet", "image": (8, 8, 1), "channels": (4,), "norm": "batch"}


def test_batch_statistics_are_trained_kept_and_resumed(tmp_path):
    straight = fit(small(model=NORMED), tmp_path / "a")
    fit(small(model=NORMED), tmp_path / "b", stop_after=8)
    resumed = fit(small(model=NORMED), tmp_path / "b")
    assert resumed.resumed_from == 8 and bits(resumed) == bits(straight)
    moved = straight.model_state["batch_stats"]["BatchNorm_0"]
    assert np.all(moved["mean"] != 0) and np.all(moved["var"] != 1)
    assert bpfree.aux(straight.opt_state)["batch_stats"]["BatchNorm_0"].keys() == {
        "mean",
        "var",
    }


def test_evaluation_reads_the_running_statistics(tmp_path):
    """They say as much as the batch's own once they have settled."""
    rate = {"learning_rate": 0.01}
    chain = (("node_perturbation", "estimator"), ("adam", rate))
    lengths = {"num_steps": 300, "log_every": 300, "checkpoint_every": 300}
    config = small(model=NORMED, chain=chain, batch_size=64, **lengths)
    assert fit(config, tmp_path).validation["accuracy"] > 0.6


def test_fault_behind_batch_statistics_names_the_node(tmp_path):
    diverging = small(
        model=NORMED,
        chain=(("likelihood_ratio", "estimator"), ("sgd", {"learning_rate": 1e30})),
    )
    with pytest.raises(TrainingFault, match="node '.*not finite"):
        fit(diverging, tmp_path)


def test_import_of_the_core_brings_no_launcher():
    heavy = (
        "ml_collections tqdm orbax matplotlib sklearn bpfree.training "
        "tensorflow_datasets grain tensorboardX"
    )
    code = f"import sys, bpfree; print([m for m in {heavy.split()} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


# ------------------------------------------------------------------------ command line


def train(*flags):
    command = [sys.executable, "scripts/train.py", *map(str, flags)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    flags = "--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}"
    started = [
        train(*flags, "--config.num_steps=2"),
        train(*flags, "--config.estimator.num_smples=2"),
    ]
    (out, err), (_, misspelt) = [p.communicate(timeout=120) for p in started]
    assert started[0].returncode == 0, err
    assert out.startswith("test accuracy 0.")
    assert "perturbations/s" in err and "train loss" in err and "examples/s" in err
    for word in ("device: ", "parameters", "nodes: 2", "noisy passes", "files go to"):
        assert word in err
    assert started[1].returncode == 1
    assert "'estimator.num_samples'" in misspelt and "Traceback" not in misspelt
    assert list(
        (tmp_path / "cache" / "bpfree" / "jax").glob("jit_run*")
    )  # compiled, kept


@pytest.mark.slow
def test_compiled_programs_are_used_again_and_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_LOG_COMPILES", "0")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    flags = ["--config=configs/digits.py:smoke", "--config.num_steps=2"]

    def run(name, *more):
        process = train(*flags, f"--workdir={tmp_path / name}", *more)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return out, err, sorted(tmp_path.rglob("cache/**/jit_*-cache"))

    assert run("a", "--nocompilation_cache")[2] == []
    out, _, kept = run("b")
    assert kept
    again, err, same = run("c")
    assert again == out and same == kept
    assert "not supported on the host machine" not in err  # the same machine


@pytest.mark.slow
def test_killed_run_resumes_with_the_same_bits(tmp_path):
    flags = [
        "--config=configs/digits.py:smoke",
        "--config.num_steps=1000",
        "--config.log_every=10",
        "--config.checkpoint_every=10",
    ]
    killed = train(*flags, f"--workdir={tmp_path / 'a'}")
    while not list((tmp_path / "a" / "checkpoints").glob("[1-9]*0")):
        time.sleep(0.05)
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    outputs = []
    for name in ("a", "b"):
        process = train(*flags, f"--workdir={tmp_path / name}")
        outputs.append(process.communicate(timeout=300)[0])
        assert process.returncode == 0
    assert outputs[0] == outputs[1]
    assert any(x["kind"] == "resumed" for x in lines(tmp_path / "a"))
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
