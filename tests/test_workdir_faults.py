"""Faults of the machine: each is one clear line, and no good checkpoint is ever lost."""

import errno
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpfree.training import ConfigError, WorkdirError, checkpoint, fit, metrics
from bpfree.training.steps import TrainState
from tests.test_training import bits, lines, standard_promotion, train

assert standard_promotion  # a fixture for every test of this module, too


def quick():
    """A config that compiles fast; checkpoints at steps 8, 16 and 20."""
    return {
        "seed": 3,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [4]},
        "batch_size": 16,
        "num_steps": 20,
        "log_every": 4,
        "checkpoint_every": 8,
        "chain": [["backprop", {}], ["sgd", {"learning_rate": 0.1}]],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run without faults ends with."""
    return bits(fit(quick(), tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The directory of a run that was stopped at step 16; to be copied, not used."""
    workdir = tmp_path_factory.mktemp("stopped")
    fit(quick(), workdir, stop_after=16)
    return workdir


@pytest.fixture
def begun(stopped, tmp_path):
    """A directory of a run that was stopped at step 16."""
    return shutil.copytree(stopped, tmp_path / "run")


def state(step):
    """A state with a PRNG key, of the structure that a run has."""
    params = {"w": jnp.arange(600.0).reshape(20, 30) * step, "b": jnp.ones(3)}
    opt_state = {"key": jax.random.key(step), "count": jnp.int32(step)}
    return TrainState(jnp.int32(step), params, {}, opt_state)


def same(a, b):
    def data(x):
        keys = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if keys else x)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all((data(x) == data(y)).all() for x, y in pairs)


@pytest.fixture
def saved(tmp_path):
    """A working directory with checkpoints of steps 8 and 16."""
    with checkpoint.opened(tmp_path) as manager:
        checkpoint.save(manager, state(8))
        checkpoint.save(manager, state(16))
    return tmp_path


def restored(workdir):
    with checkpoint.opened(workdir) as manager:
        return checkpoint.restore(manager, state(0))


# ------------------------------------------------------------------ damaged checkpoints


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE = {"cut off": cut, "a bit flipped": flip, "gone": lambda path: path.unlink()}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_file_falls_back_and_says_so(damage, saved, tmp_path, capfd):
    newest = saved / "checkpoints" / "16"
    files = [f.relative_to(newest) for f in newest.rglob("*") if f.is_file()]
    assert len(files) > 8
    shutil.copytree(newest, tmp_path / "spare")
    for file in files:
        if file.name == "SHA256SUMS" and damage == "gone":
            continue  # as after a kill just before it was written: see below
        DAMAGE[damage](newest / file)
        assert same(restored(saved), state(8)), file
        (line,) = capfd.readouterr().err.splitlines()
        assert "damaged checkpoints are moved to" in line and "step 16 (" in line
        assert line.endswith("going on from step 8")
        shutil.rmtree(newest, ignore_errors=True)
        shutil.copytree(tmp_path / "spare", newest)
    aside = sorted(p.name for p in (saved / "damaged").iterdir())
    assert aside[:2] == ["16", "16.1"] and len(aside) >= len(files) - 1
    assert same(restored(saved), state(16))


def test_a_checkpoint_that_was_killed_before_its_checksums_is_used(saved):
    (saved / "checkpoints" / "16" / "SHA256SUMS").unlink()
    assert same(restored(saved), state(16))


def test_if_none_is_sound_nothing_is_touched(saved, capfd):
    for step in ("8", "16"):
        flip(saved / "checkpoints" / step / "SHA256SUMS")
    with pytest.raises(WorkdirError, match=r"no checkpoint .*step 16 \(.*step 8 \("):
        restored(saved)
    kept = sorted(p.name for p in (saved / "checkpoints").iterdir())
    assert kept == ["16", "8"] and not (saved / "damaged").exists()
    assert capfd.readouterr().err == ""


def test_a_checkpoint_of_a_version_with_other_states_is_refused(saved):
    """Orbax restores a typed key in place of the words of one, and says nothing."""
    opt_state = {"key": jnp.zeros(2, jnp.uint32), "count": jnp.int32(0)}
    words = state(0)._replace(opt_state=opt_state)
    message = r"step 16 \(opt_state/key is key<fry>, not uint32: another bpfree wrote"
    with checkpoint.opened(saved) as manager:
        with pytest.raises(WorkdirError, match=message):
            checkpoint.restore(manager, words)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(saved, capfd):
    params = jax.tree.map(lambda p: jnp.zeros((*p.shape, 1), p.dtype), state(0).params)
    message = r"step 16 \(parameter \S+ is \(.*\) in it and \(.*, 1\) in the model"
    with checkpoint.opened(saved) as manager:
        with pytest.raises(WorkdirError, match=message):
            checkpoint.restore(manager, state(0)._replace(params=params))
    assert capfd.readouterr().err == ""


def test_a_run_goes_on_from_the_previous_checkpoint(undisturbed, begun, capfd):
    cut(next((begun / "checkpoints" / "16").rglob("manifest.ocdbt")))
    resumed = fit(quick(), begun)
    said = [x for x in capfd.readouterr().err.splitlines() if "damaged" in x]
    assert len(said) == 1 and said[0].endswith("going on from step 8")
    assert resumed.resumed_from == 8 and bits(resumed) == undisturbed
    assert (begun / "checkpoints" / "16").is_dir()  # written anew
    assert (begun / "damaged" / "16").is_dir()


class Trap:
    """What unpickling runs."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_restoring_executes_nothing(saved, tmp_path, monkeypatch):
    """Neither from a file put beside the arrays nor from one put in their place."""
    canary, newest = tmp_path / "executed", saved / "checkpoints" / "16"
    trap = pickle.dumps(Trap(str(canary)))
    pickle.loads(trap)
    canary.rmdir()  # the trap works
    files = [f for f in newest.rglob("*") if f.is_file()]
    for folder in {f.parent for f in files} | {saved, saved / "checkpoints"}:
        for name in ("state.pkl", "checkpoint", "msgpack", "aux.pickle"):
            (folder / name).write_bytes(trap)
        (folder / "__init__.py").write_text(f"import os; os.mkdir({str(canary)!r})")
    (newest / "SHA256SUMS").unlink()  # so that it is read, however it looks
    for file in files:
        if "ocdbt" not in str(file) and file.exists():
            file.write_bytes(trap)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)  # Orbax's own tasks
    assert same(restored(saved), state(8)) and not canary.exists()


def test_a_file_put_beside_the_arrays_is_not_read(saved, capfd):
    (saved / "checkpoints" / "16" / "checkpoint").write_bytes(b"Orbax would read this")
    assert same(restored(saved), state(8))
    assert "step 16 (checkpoint does not belong to it)" in capfd.readouterr().err


# -------------------------------------------------------------- a record that is damaged


def test_a_record_that_is_damaged_or_lost(begun):
    config_file, record = begun / "config.json", begun / "metrics.jsonl"
    good, header = config_file.read_text(), record.read_text().partition("\n")[0] + "\n"
    config_file.write_text(good[:20])
    with pytest.raises(WorkdirError, match=r"config\.json is damaged \("):
        fit(quick(), begun)
    config_file.unlink()
    with pytest.raises(WorkdirError, match="checkpoints but no config.json"):
        fit(quick(), begun)
    config_file.write_text(good)
    record.write_text(header + '{"kind": "log"\n' + header)
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl, line 2, is damaged"):
        fit(quick(), begun)
    record.unlink()
    with pytest.raises(WorkdirError, match="has lost its header"):
        fit(quick(), begun)
    record.write_text(header.replace('"sha256": "fe61', '"sha256": "ba5e'))
    with pytest.raises(ConfigError, match=r"other data; these differ: data\.sha256\."):
        fit(quick(), begun)


# ----------------------------------------------------------------- two runs, one workdir


def test_a_claimed_directory_is_refused_until_its_process_dies(tmp_path):
    """The other process holds the lock as a run does, and is killed as runs are."""
    code = (
        "import fcntl, os, sys, time\n"
        "file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(f'process {os.getpid()} on a node'); file.flush()\n"
        "print('locked', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        pid = f"in use by process {other.pid} on "
        with pytest.raises(WorkdirError, match=pid):
            fit(quick(), tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["lock"]
        other.kill()
    with (tmp_path / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free again


def test_a_run_holds_its_directory_while_it_trains(tmp_path, monkeypatch):
    write, seen = metrics.write, []

    def write_and_look(workdir, kind, record):
        write(workdir, kind, record)
        if kind == "header":
            with pytest.raises(WorkdirError, match=f"in use by process {os.getpid()} on"):
                fit(quick(), tmp_path)
            seen.append(kind)

    monkeypatch.setattr(metrics, "write", write_and_look)
    fit(quick(), tmp_path, stop_after=4)
    assert seen == ["header"]


# ------------------------------------------------------- a disk that is full or read-only


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(WorkdirError, match="file/run: .*Not a directory.*--workdir"):
        fit(quick(), tmp_path / "file" / "run")


def mounted(path, *options):
    """A real small file system, where this machine lets us mount one."""
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("this machine does not let us mount a file system")


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    yield path
    subprocess.run(["umount", str(path)], capture_output=True)


def test_a_read_only_disk(disk):
    mounted(disk, "ro")
    with pytest.raises(WorkdirError, match="Read-only file system.*Make it writable"):
        fit(quick(), disk / "run")


def test_a_directory_without_permission(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "run")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(WorkdirError, match="Permission denied: 'run'. Make it writable"):
        fit(quick(), tmp_path / "run")


# Orbax's threads outlive the event loop of a save that failed, and say so at their end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up(undisturbed, stopped, disk, caplog):
    """A real one; the last checkpoint before stays good and the run goes on from it."""
    mounted(disk, "size=1m")
    run, filler = disk / "run", disk / "filler"
    shutil.copytree(stopped, run)
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - 12_000))
    with pytest.raises(WorkdirError, match="No space left on device.*Free some space"):
        fit(quick(), run)
    assert not [x for x in caplog.records if x.exc_info]  # Orbax logs tracebacks
    filler.unlink()
    resumed = fit(quick(), run)
    assert resumed.resumed_from == 16 and bits(resumed) == undisturbed
    logged = [x["step"] for x in lines(run) if x["kind"] == "log"]
    assert logged == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("place", ["checkpoint", "metrics"])
def test_a_full_disk_wherever_it_shows(place, begun, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where = {
        "checkpoint": "orbax.checkpoint.CheckpointManager.save",
        "metrics": "bpfree.training.metrics.write",
    }
    monkeypatch.setattr(where[place], full)
    with pytest.raises(WorkdirError, match="No space left on device.*Free some space"):
        fit(quick(), begun)
    assert (begun / "checkpoints" / "16" / "SHA256SUMS").exists()


# ------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    """Killed again and again: no damage, and at the end the bits of a quiet run."""
    flags = [
        "--config=configs/digits.py:smoke",
        "--config.num_steps=3000",
        "--config.log_every=10",
        "--config.checkpoint_every=10",
    ]
    rng = np.random.default_rng(0)
    kills, workdir = 0, tmp_path / "a"
    while kills < 5:
        process = train(*flags, f"--workdir={workdir}")
        before = sorted((workdir / "checkpoints").glob("*0"))
        while sorted((workdir / "checkpoints").glob("*0")) == before:
            time.sleep(0.01)
            assert process.poll() is None, process.communicate()
        time.sleep(rng.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    outputs = []
    for name in ("a", "b"):
        process = train(*flags, f"--workdir={tmp_path / name}")
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0 and "damaged" not in err
        outputs.append(out)
    assert outputs[0] == outputs[1]
    logs = [
        [
            (x["step"], x["train/loss"])
            for x in lines(tmp_path / name)
            if x["kind"] == "log"
        ]
        for name in ("a", "b")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 300


@pytest.mark.slow
def test_two_commands_on_one_directory(tmp_path):
    flags = [
        "--config=configs/digits.py:smoke",
        "--config.num_steps=100000",
        "--config.log_every=100",
        f"--workdir={tmp_path}",
    ]
    flags.append("--config.checkpoint_every=100")
    first = train(*flags)
    while not (tmp_path / "checkpoints" / "100").exists():
        time.sleep(0.05)
        assert first.poll() is None
    second = train(*flags)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1
    (line,) = err.strip().splitlines()
    assert line.startswith("bpfree-train: ") and f"process {first.pid} on" in line
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM and "stopped and saved" in err
