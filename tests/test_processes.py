"""One run on several processes of this machine, two virtual devices each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bpfree.training import ConfigError, fit, processes
from tests.test_mesh import parameters
from tests.test_training import ROOT, standard_promotion

assert standard_promotion  # a fixture for every test of this module, too

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        seed=3, batch_size=16, num_steps=40, log_every=4, checkpoint_every=8, mesh="",
        data={"name": "digits", "loader": "device"},
        model={"name": "mlp", "hidden": (4,)},
        estimator={"num_samples": 4, "sigma": 0.05},
        chain=(("likelihood_ratio", "estimator"), ("adam", {"learning_rate": 0.01})),
    ))
"""


def get_config(**changes):
    found = {}
    exec(CONFIG, found)
    return ConfigDict(found["get_config"]().to_dict() | changes)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(count, config_file, workdir, *flags, slurm=False):
    """`count` processes of one run, with two devices each."""
    flags = (
        f"--config={config_file}",
        f"--workdir={workdir}",
        "--jax_num_cpu_devices=2",
        "--jax_disable_most_optimizations",
        "--nocompilation_cache",
        *flags,
    )
    port = free_port()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    started = []
    for i in range(count):
        mine = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        mine += [f"--process_id={i}"]
        more = {}
        if slurm:
            mine = []
            names = ("JOB_ID", "STEP_NODELIST", "NTASKS", "STEP_NUM_TASKS", "PROCID")
            values = (port, "localhost", count, count, i)
            more = {f"SLURM_{k}": str(v) for k, v in zip(names, values, strict=True)}
            more["SLURM_LOCALID"] = str(i)
        command = [
            sys.executable,
            "scripts/train.py",
            *flags,
            *(mine if count > 1 else []),
        ]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | more,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
    return started


def finish(started):
    """[(stdout, stderr)] of processes that must end well."""
    said = [process.communicate(timeout=300) for process in started]
    for process, (_, err) in zip(started, said, strict=True):
        assert process.returncode == 0, err[-3000:]
    return said


def logged(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if line["kind"] == "log"}


def end_of(workdir, **changes):
    """Parameters of a finished run, read on one device of this process."""
    result = fit(get_config(**changes), workdir)
    assert result.resumed_from == result.steps
    return parameters(result)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["device", "grain"])
def test_two_processes_do_what_one_does(loader, config_file, tmp_path):
    """As SLURM starts them; each reads its part of the batch, process 0 writes."""
    if loader == "grain":
        pytest.importorskip("grain")
    flags = "--config.mesh=data:2,sample:2", f"--config.data.loader={loader}"
    said = finish(start(2, config_file, tmp_path / "two", *flags, slurm=True))
    assert "test accuracy" in said[0][0] and "step/s" in said[0][1]
    assert "accuracy" not in said[1][0] and "step/s" not in said[1][1]
    changes = {"data": {"name": "digits", "loader": loader}}
    alone = fit(get_config(**changes), tmp_path / "one")
    found = end_of(tmp_path / "two", **changes)
    np.testing.assert_allclose(found, parameters(alone), rtol=1e-4, atol=1e-5)
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_others_take_it_up(
    victim, config_file, tmp_path
):
    workdir = tmp_path / "run"
    flags = ["--config.num_steps=4000", "--config.log_every=40"]
    flags += ["--config.checkpoint_every=80", "--config.mesh=data:4"]
    started = start(2, config_file, workdir, *flags)
    until = time.monotonic() + 120
    while not list((workdir / "checkpoints").glob("*0/SHA256SUMS")):
        assert all(p.poll() is None for p in started) and time.monotonic() < until
        time.sleep(0.05)
    started[victim].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    _, err = started[1 - victim].communicate(timeout=60)
    assert started[1 - victim].returncode not in (0, None)
    assert time.monotonic() - begun < 60
    ours = "bpfree-train: another process of the run has ended"
    of_jax = "This most likely indicates that another task died"
    assert (ours in err or of_jax in err) and "Traceback" not in err, err[-3000:]
    started[victim].communicate()
    steps = max(logged(workdir))
    assert steps < 4000
    finish(start(1, config_file, workdir, *flags[:-1], "--config.mesh=data:2"))
    changes = {"num_steps": 4000, "log_every": 40, "checkpoint_every": 80}
    alone = fit(get_config(**changes), tmp_path / "one")
    found = end_of(workdir, **changes)
    kinds = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in kinds if x["kind"] == "resumed"] != []
    assert logged(workdir)[40] == pytest.approx(logged(tmp_path / "one")[40], rel=1e-4)
    assert found.shape == parameters(alone).shape and np.isfinite(found).all()


@pytest.mark.slow
def test_a_run_goes_on_with_more_processes(config_file, tmp_path):
    workdir = tmp_path / "run"
    fit(get_config(), workdir, stop_after=16)
    assert max(logged(workdir)) == 16
    finish(start(2, config_file, workdir, "--config.mesh=data:4"))
    alone = fit(get_config(), tmp_path / "one")
    found = end_of(workdir)
    np.testing.assert_allclose(found, parameters(alone), rtol=1e-4, atol=1e-5)
    assert logged(workdir) == pytest.approx(logged(tmp_path / "one"), rel=1e-4)


# ------------------------------------------------------------------------- who are we?


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` is called with."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **kwargs: calls.append(args)
    )
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_")):
            monkeypatch.delenv(name)
    return calls


def test_one_process_joins_nobody(joined, monkeypatch):
    processes.initialize()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")  # of a batch script, that srun has not split
    processes.initialize()
    assert joined == []


def test_flags_and_variables_say_who_we_are(joined, monkeypatch):
    processes.initialize("host:1", 4, 3)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    processes.initialize("host:1")
    processes.initialize()
    assert joined == [("host:1", 4, 3), ("host:1", 8, 5), (None, 8, 5)]


@pytest.mark.parametrize(
    "args, message",
    [
        (("host:1",), "many processes need --num_processes, --process_id, too"),
        ((None, 4, 0), "many processes need --coordinator, too"),
        (("host:1", 4, 4), "--process_id=4 must be 0 to 3"),
    ],
)
def test_a_process_that_does_not_know_who_it_is(joined, args, message):
    with pytest.raises(ConfigError, match=message):
        processes.initialize(*args)
    assert joined == []
