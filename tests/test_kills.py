"""SIGKILL at random moments, twenty times in a row: no bit is lost."""

import json
import random
import signal
import time

import pytest

from bpfree.training import fit
from tests.test_processes import config_file, get_config, logged, start
from tests.test_training import bits, lines, standard_promotion

assert standard_promotion and config_file  # fixtures of this module, too

KILLS, STEPS = 20, 1500
RHYTHM = {"num_steps": STEPS, "log_every": 10, "checkpoint_every": 10}


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_bits(config_file, tmp_path):
    workdir, when = tmp_path / "run", random.Random(0)
    flags = [f"--config.{name}={value}" for name, value in RHYTHM.items()]
    resumed_at = []
    for _ in range(KILLS):
        (process,) = start(1, config_file, workdir, *flags)
        before = last_step(workdir)
        goal = before + 10 * when.randint(1, 6)
        while last_step(workdir) < goal:
            assert process.poll() is None, process.communicate()[1][-2000:]
            time.sleep(0.01)
        time.sleep(0.05 * when.random())  # anywhere in a block or in a save
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert "damaged" not in err
        resumed_at.append(last_step(workdir))
    assert resumed_at[-1] < STEPS
    (process,) = start(1, config_file, workdir, *flags)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "damaged" not in err, err[-2000:]
    assert not (workdir / "damaged").exists()
    (straight,) = start(1, config_file, tmp_path / "straight", *flags)
    assert straight.communicate(timeout=300) and straight.returncode == 0
    killed, undisturbed = (
        fit(get_config(**RHYTHM), folder) for folder in (workdir, tmp_path / "straight")
    )
    assert killed.resumed_from == undisturbed.resumed_from == STEPS
    assert bits(killed) == bits(undisturbed)
    assert logged(workdir) == logged(tmp_path / "straight")
    assert sum(x["kind"] == "resumed" for x in lines(workdir)) > 0


def last_step(workdir):
    """Of the record, whose last line may be half written."""
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return 0
    whole = text[: text.rfind("\n") + 1]
    records = map(json.loads, whole.splitlines())
    return max((r["step"] for r in records if r["kind"] == "log"), default=0)
