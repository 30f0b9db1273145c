"""The command line: every mistake is one line, and finished runs go on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

from bpfree.training import (
    ConfigError,
    WorkdirError,
    config_files,
    fit,
    interrupt,
    resume,
)
from bpfree.training import command_line as cli
from tests.test_training import bits, lines, standard_promotion
from tests.test_workdir_faults import quick

assert standard_promotion  # a fixture for every test of this module, too

GOOD = """
from ml_collections import ConfigDict


def get_config(arg=""):
    config = ConfigDict({"seed": 0, "estimator": {"num_samples": 2}})
    config.own = "./nets.py:CNN"
    return config.lock()
"""

MISTAKES = {
    "no such file": (None, "gone.py", "there is no such file; bpfree-train --list"),
    "no such name": (None, "digit", "'digit' is unknown. Did you mean 'digits'"),
    "syntax": ("x = 1\ny = = 2\n", "c.py", "c.py, line 2: SyntaxError: invalid syntax"),
    "import": ("\nimport nonesuch\n", "c.py", "line 2: ModuleNotFoundError.*nonesuch"),
    "no get_config": ("x = 1\n", "c.py", r"c.py has no function get_config\(\)"),
    "returns none": ("def get_config(): pass\n", "c.py", "returns a NoneType"),
    "its own error": (
        "def get_config(arg):\n    raise ValueError('no ' + arg)\n",
        "c.py:np",
        "line 2: ValueError: no np",
    ),
    "json": ("{", "c.json", "c.json is no JSON"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_config_file_is_one_line(mistake, tmp_path, monkeypatch):
    text, name, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name.partition(":")[0]).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config_files.load(name).config()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=a", "--config", "b"], "--config is given 2 times: a, b"),
        (["--config=c.py", "--config.estimatr.num_samples=1"], "'estimatr.num_samples'"),
        (["--config=c.py", "--config.seed=many"], "seed.*many"),
        (["--config=c.py", "--wrkdir=x"], "wrkdir"),
        (["--config=c.py"], "--workdir is missing"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(GOOD)
    with pytest.raises(SystemExit) as caught, cli.in_a_line("bpfree-train"):
        cli.parse(["bpfree-train", *arguments], "", __name__)
    text = str(caught.value)
    for name in [n for n in flags.FLAGS if n.partition(".")[0] == "config"]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    assert text.startswith("bpfree-train: ") and "\n" not in text
    assert re.search(message, text), text


def test_paths_are_next_to_the_config(tmp_path):
    (tmp_path / "c.py").write_text(GOOD)
    made = config_files.load(str(tmp_path / "c.py")).config()
    assert made.own == f"{tmp_path}/nets.py:CNN" and made.is_locked


def test_a_config_imports_its_neighbours_through_a_link_too(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/neighbour_of_c.py").write_text("STEPS = 7")
    text = "import neighbour_of_c as n\ndef get_config(): return {'num_steps': n.STEPS}"
    (tmp_path / "lab/c.py").write_text(text)
    (tmp_path / "link.py").symlink_to(tmp_path / "lab/c.py")
    found = config_files.load(str(tmp_path / "link.py"))
    assert found.config().num_steps == 7 and found.path.parent.name == "lab"


def test_configs_are_listed_with_their_purpose():
    found = config_files.listed()
    assert len(found) > 20 and all(found.values())
    assert "8 x 8" in found["digits"]


# ------------------------------------------------------------------- finished runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, fit(quick(), workdir)


def test_a_finished_run_goes_on_with_more_steps(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    assert resume.extended(workdir, 20, 8) == 28
    longer = ConfigDict(quick())
    longer.num_steps = 28
    result = fit(longer, workdir)
    straight = fit(longer, tmp_path / "straight")
    assert (result.resumed_from, result.steps) == (20, 28)
    assert bits(result) == bits(straight)
    assert lines(workdir)[-1]["step"] == 28
    with pytest.raises(ConfigError, match="config.num_steps"):
        fit(quick(), workdir)


def test_entries_that_follow_num_steps_may_follow_it(finished):
    made = ConfigDict({"num_steps": 30})
    made.decay = made.get_ref("num_steps")
    shorter = resume._shortened(made, 20)
    assert shorter.to_dict() == {"num_steps": 20, "decay": 20} and made.decay == 30


def test_a_finished_run_is_read_where_nothing_can_be_written(
    finished, tmp_path, monkeypatch
):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "lock").unlink()
    monkeypatch.setattr("bpfree.training.loop.can_write", lambda path: False)
    before = sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*"))
    assert bits(fit(quick(), workdir)) == bits(finished[1])
    assert sorted((p, p.stat().st_mtime_ns) for p in workdir.rglob("*")) == before
    with pytest.raises(WorkdirError, match="cannot be written.*not finished"):
        fit(quick() | {"num_steps": 40}, workdir)


def test_a_run_in_the_directory_of_a_sweep_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(WorkdirError, match="is in the directory of a sweep"):
        resume.check_place(tmp_path / "points" / "a")
    with pytest.raises(WorkdirError, match="is in the directory of a sweep"):
        resume.check_place(tmp_path / "another", sweep=True)
    resume.check_place(tmp_path, sweep=True)  # the sweep itself goes on
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WorkdirError, match="holds a run"):
        resume.check_place(tmp_path, sweep=True)


# ------------------------------------------------------------------------- signals


def test_a_signal_is_answered_at_once_and_two_of_them_lose_nothing(capfd):
    """While another thread computes; the block ends after the piece under way."""
    counts = []

    def advance(state, count):
        counts.append(count)
        time.sleep(0.3)
        return state + count, jax.numpy.zeros(())

    def press():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with interrupt.noted("the run") as came:
        threading.Thread(target=press).start()
        state, _, done, _, stop = interrupt.pieces(advance, 0, 100, 1, came)
    assert (state, done, stop, counts) == (1, 1, True, [1])
    err = capfd.readouterr().err
    assert "SIGINT: the run stops after the step under way" in err
    assert "SIGINT: the run is stopping already" in err


def test_a_third_signal_ends_a_step_that_takes_too_long():
    """The process waits for its step in another thread, so the handler runs at once."""
    code = (
        "import time\n"
        "from bpfree.training import interrupt\n"
        "with interrupt.noted('the run'):\n"
        "    print('ready', flush=True)\n"
        "    interrupt.wait_for(time.sleep, 600)\n"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    assert err.splitlines()[-1].startswith("SIGINT: the run ends at once; the same comm")


def test_pieces_last_some_seconds(monkeypatch):
    counts = []
    monkeypatch.setattr(interrupt, "SECONDS", 0.4)

    def advance(state, count):
        counts.append(count)
        time.sleep(0.02 * count)
        return state, jax.numpy.zeros(())

    _, _, done, _, stop = interrupt.pieces(advance, 0, 60, 1, [])
    assert (done, stop) == (60, False)
    assert counts[0] == 1 and all(1 < c <= 20 for c in counts[1:-1]), counts


def test_waiting_for_a_compilation_is_given_up():
    came: list[int] = []
    threading.Timer(0.2, lambda: came.append(signal.SIGTERM)).start()
    begun = time.monotonic()
    with pytest.raises(interrupt.Interrupted, match="SIGTERM: stopped before the first"):
        interrupt.wait_for(time.sleep, 3, given_up=came)
    assert time.monotonic() - begun < 2


def test_the_core_imports_without_the_extra():
    code = (
        "import sys\n"
        "for name in 'sklearn matplotlib ml_collections tqdm'.split():\n"
        "    sys.modules[name] = None\n"
        "import bpfree, bpfree.commands\n"
        "bpfree.commands.train()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = ended.stderr.strip().splitlines()
    assert ended.returncode == 1 and "pip install 'bpfree[train]'" in line


def test_a_reader_that_has_enough_is_no_error():
    """As `bpfree-train --list | head -1`."""
    code = "import sys, bpfree.commands as c; sys.argv[1:] = ['--list']; c.train()"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")
