"""Sweeps: one program for many points, workers for the others, nothing done twice."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from bpfree.sweeps import (
    group,
    ledger,
    make_points,
    points,
    report,
    result,
    schedule,
    slots,
    together,
    worker,
)
from bpfree.sweeps.worker import folder_of
from bpfree.training import ConfigError, WorkdirError, fit, losses
from bpfree.training.loss_functions import accuracy
from tests.test_training import ROOT, small, standard_promotion

assert standard_promotion  # a fixture for every test of this module, too

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.update(
        seed=3, batch_size=16, num_steps=20, log_every=4, checkpoint_every=8,
        data={"name": "digits"}, model={"name": "mlp", "hidden": (4,)},
        estimator={"num_samples": 2, "sigma": 0.05}, rate={"learning_rate": 0.1},
        chain=(("likelihood_ratio", "estimator"), ("sgd", "rate")),
    )
    return config
"""


ACCURACY = losses.Metric("accuracy", False, accuracy)
MEASURED = ("validation/accuracy", "test/accuracy")


def get_config():
    made = small(rate={"learning_rate": 0.1}, data={"name": "digits"})
    made["chain"] = (("likelihood_ratio", "estimator"), ("sgd", "rate"))
    return ConfigDict(made)


def seeds(count, **more):
    return [{"seed": s, **more} for s in range(count)]


# --------------------------------------------------------------------------- the points


def test_points_are_known_by_their_configs():
    first = make_points(get_config, [{"seed": 0}, {"seed": 1}, {"seed": 0}])
    assert [p.overrides["seed"] for p in first] == [0, 1]
    more = make_points(get_config, [{"seed": 1, "log_every": 2}, {"seed": 2}])
    assert more[0].name == first[1].name and more[1].name not in {p.name for p in first}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"estimator.sigmar": 1.0}, "'estimator.sigmar' is unknown"),
        ({"estimator.sigma.x": 1.0}, "'estimator.sigma.x' is unknown"),
        ({"batch_size": "many"}, "batch_size"),
        ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
    ],
)
def test_a_point_that_does_not_fit_says_so_and_is_kept(overrides, message):
    good, bad = make_points(get_config, [{}, overrides])
    assert good.error is None and message in bad.error


@pytest.mark.parametrize("sweep", [{"seed": 0}, [1], []])
def test_get_sweep_must_return_dicts(sweep):
    with pytest.raises(ConfigError, match="get_sweep"):
        make_points(get_config, sweep)


def test_points_that_differ_in_numbers_of_the_chain_are_one_group():
    sweep = [
        {"seed": 0},
        {"seed": 1, "rate.learning_rate": 0.2, "estimator.sigma": 0.1},
        {"batch_size": 8},
        {"estimator.num_samples": 4},
        {"data.pixel_noise": 0.5},
    ]

    def noisy():
        data = {"name": "digits", "pixel_noise": 0.1}
        return ConfigDict(get_config().to_dict() | {"data": data})

    found = points.groups(make_points(noisy, sweep))
    assert [len(each) for each in found] == [2, 1, 1, 1]
    varied = points.varied([p.config for p in found[0]])
    assert varied == {
        "seed": [0, 1],
        "rate.learning_rate": [0.1, 0.2],
        "estimator.sigma": [0.05, 0.1],
    }


def test_numbers_outside_the_chain_are_points_of_their_own():
    def own():
        loss = {"name": "./mine.py:loss", "scale": 1.0}
        return ConfigDict(get_config().to_dict() | {"loss": loss})

    sweep = [{"loss.scale": 1.0}, {"loss.scale": 50.0}, {"rate.learning_rate": 0.2}]
    found = points.groups(make_points(own, sweep))
    assert [len(each) for each in found] == [2, 1]
    assert [p.config["loss"]["scale"] for p in found[0]] == [1.0, 1.0]
    with pytest.raises(KeyError, match="loss.scale"):
        points.replaced({"chain": [0.1]}, {"loss.scale": 2.0})


# -------------------------------------------------------------------------- one program


MIXED = [
    {"seed": 5, "rate.learning_rate": 0.2},
    {"seed": 5, "rate.learning_rate": 1e30},
    {"seed": 6, "estimator.sigma": 0.1},
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Three points on three devices, stopped and resumed in between."""
    folder = tmp_path_factory.mktemp("shared")
    configs = [p.config for p in make_points(get_config, MIXED)]
    runs = together.Runs(folder, [folder / str(i) for i in range(3)], configs)
    return runs, together.fit_together(runs)


def test_one_program_does_what_single_runs_do(shared, tmp_path):
    runs, results = shared
    alone = fit(runs.configs[2], tmp_path)
    assert results[2]["test/accuracy"] == pytest.approx(alone.test["accuracy"])
    np.testing.assert_allclose(logged(runs.workdirs[2]), logged(tmp_path), rtol=1e-4)


def logged(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if line["kind"] == "log"]


def test_a_point_that_diverges_leaves_the_others_alone(shared):
    _, results = shared
    assert [r["status"] for r in results] == ["done", "failed", "done"]
    assert "node 'Dense_" in results[1]["error"] and "step 1" in results[1]["error"]


def test_devices_share_the_points_without_a_word_between_them(shared):
    runs, _ = shared
    placed = together.place(group.make_group(runs.configs))
    kernel = placed.state.params["Dense_0"]["kernel"]
    assert len(kernel.sharding.device_set) == 3 and len(kernel) == 3
    text = together.lowered(placed, 2).compile().as_text()
    for exchange in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert exchange not in text


def test_numbers_that_constructors_read_are_refused():
    """`decay_steps` must be a number when the schedule is made."""
    made = get_config().to_dict()
    schedule_ = {"init_value": 0.1, "decay_steps": 20.0}
    made |= {"rate": {"learning_rate": ("cosine_decay_schedule", "decay")}}
    made |= {"decay": schedule_}
    sweep = [{"decay.decay_steps": 20.0}, {"decay.decay_steps": 30.0}]
    found = make_points(lambda: ConfigDict(made), sweep)
    with pytest.raises(ConfigError, match="cannot take decay.decay_steps as arguments"):
        group.make_group([p.config for p in found])


# ------------------------------------------------------------------------------ ledger


def test_a_ledger_line_cut_short_is_overwritten(tmp_path):
    ledger.append(tmp_path, {"name": "a", "status": "done"})
    with ledger.path_of(tmp_path).open("a") as file:
        file.write('{"name": "b", "sta')
    assert ledger.read(tmp_path).keys() == {"a"}
    ledger.append(tmp_path, {"name": "c", "status": "done"})
    assert ledger.read(tmp_path).keys() == {"a", "c"}
    ledger.path_of(tmp_path).write_text('{"name": "a"}\nnonsense\n{"name": "c"}\n')
    with pytest.raises(WorkdirError, match="line 2, is damaged"):
        ledger.read(tmp_path)


# --------------------------------------------------------------------------- scheduling


class Fake:
    """A worker that has ended with `status`; `write` is what it wrote, by name."""

    started: list = []

    def __init__(self, statuses, workdir, names, slot):
        self.status = statuses.get(names[0], 0)
        Fake.started.append(list(names))
        for name in names:
            if self.status == 0:
                summary = {"step": 1, "seconds": 1, **dict.fromkeys(MEASURED, 0.5)}
                found = result.done(summary, [{"train/loss": 1.0}], ACCURACY)
                result.write(folder_of(workdir, name), found)

    def poll(self):
        return self.status

    def terminate(self):
        pass


def run(found, workdir, statuses=None, **options):
    Fake.started = []
    start = lambda *args: Fake(statuses or {}, *args)  # noqa: E731
    return schedule.sweep(found, workdir, start=start, **options)


def test_finished_points_are_not_repeated_and_new_ones_are_added(tmp_path):
    first = make_points(get_config, seeds(2))
    run(first, tmp_path)
    assert Fake.started == [[p.name for p in first]]
    more = make_points(get_config, seeds(3))
    assert len(run(more, tmp_path)) == 3
    assert Fake.started == [[more[2].name]]
    run(more, tmp_path)
    assert Fake.started == []


def test_a_group_that_cannot_run_together_is_run_one_by_one(tmp_path):
    """One point is then ended for its memory: the others are done all the same."""
    found = make_points(get_config, seeds(3))
    names = [p.name for p in found]
    statuses = {names[0]: -signal.SIGKILL}
    records = run(found, tmp_path, statuses)
    assert Fake.started == [names, *([n] for n in names)]
    assert [records[n]["status"] for n in names] == ["failed", "done", "done"]
    assert "SIGKILL" in records[names[0]]["error"]
    assert "out of memory" in records[names[0]]["error"]
    run(found, tmp_path)
    assert Fake.started == []  # it was told; `retry` asks for it
    records = run(found, tmp_path, retry=True)
    assert Fake.started == [[names[0]]] and records[names[0]]["status"] == "done"


def test_a_result_that_was_not_noted_yet_counts(tmp_path):
    """The scheduler was killed between the worker's last word and its own."""
    found = make_points(get_config, seeds(2))
    run(found, tmp_path)
    ledger.path_of(tmp_path).unlink()
    assert len(run(found, tmp_path)) == 2 and Fake.started == []


def test_slots_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(slots, "cores", lambda: [0, 1, 2, 3])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [s.cores for s in slots.make_slots(2, 9)] == [[0, 2], [1, 3]]
    assert len(slots.make_slots(None, 9)) == 4
    assert len(slots.make_slots(None, 1)) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = slots.make_slots(None, 9)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in found] == ["3", "5"]


# ------------------------------------------------------------------------------- report


def record(name, accuracy=None, **overrides):
    summary = {"step": 20, "seconds": 1.0, "test/accuracy": 0.8}
    found = result.failed("NaN at step 3")
    if accuracy is not None:
        summary["validation/accuracy"] = accuracy
        found = result.done(summary, [{"train/loss": 1.0}], ACCURACY)
    return {"name": name, "overrides": overrides, **found}


def test_a_report_of_metrics_that_are_not_finite(tmp_path):
    for i, value in enumerate((np.nan, 0.5, np.inf, -np.inf)):
        ledger.append(tmp_path, record(str(i), value, seed=i, rate=0.1 + i // 2))
    found = report.lines(ledger.read(tmp_path))
    assert len(found) == 2
    assert all(np.isnan(x.deviation("validation/accuracy")) for x in found)
    assert "nan" in report.text(tmp_path)


def test_report(tmp_path):
    records = [
        record("a", 0.7, seed=0, rate=0.1),
        record("b", 0.9, seed=1, rate=0.1),
        record("c", 0.85, seed=0, rate=0.2),
        record("d", 0.84, seed=1, rate=0.2),
        record("e", seed=0, rate=9.0),
    ]
    for each in records:
        ledger.append(tmp_path, each)
    lines = report.lines(ledger.read(tmp_path))
    assert [line.overrides["rate"] for line in lines] == [0.2, 0.1, 9.0]
    assert lines[1].deviation("validation/accuracy") == pytest.approx(0.2 / 2**0.5)
    text = report.text(tmp_path)
    assert "| rate=0.2 | 2 | 0.845 +- 0.0071 | 0.8 +- 0 | 1.0000 | 1.0 |  |" in text
    assert "failed: seed=0, rate=9.0: NaN at step 3" in text
    config = folder_of(tmp_path, "c") / "config.json"
    command = f"bpfree-train --config={config} --workdir={tmp_path}-best"
    assert f"best: {command}" in text
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.count("<svg") == 2
    assert "<td>0.845 &plusmn; 0.0071</td>" in page and html.escape(command) in page
    assert "<li>seed=0, rate=9.0: NaN at step 3</li>" in page
    assert not re.search(r"(?:src|href)=\"[^#]|url\([^#]|@import", page)  # alone


def test_the_best_command_works_as_printed(tmp_path):
    """Each point was trained by a worker; the command trains the best one again."""
    workdir = tmp_path / "a sweep"
    points_ = make_points(get_config, seeds(2, **{"model.hidden": (4,)}))
    for point in points_:
        folder = folder_of(workdir, point.name)
        schedule.write_point(folder, point)
        assert worker.run(workdir, [point.name]) == 0
        known = {"name": point.name, "overrides": point.overrides}
        ledger.append(workdir, {**known, **result.read(folder)})
    (printed,) = re.findall("^best: (.*)$", report.text(workdir), re.MULTILINE)
    best = max(ledger.read(workdir).values(), key=result.validation)
    program, *flags = shlex.split(printed)
    assert program == "bpfree-train"
    main = "from bpfree.commands import train; train()"
    ended = subprocess.run(
        [sys.executable, "-c", main, *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    test = float(re.fullmatch(r"test accuracy (.*)\n", ended.stdout)[1])
    assert test == pytest.approx(best["test/accuracy"], abs=0.05)  # float32 here
    assert (tmp_path / "a sweep-best" / "config.json").exists()


# ------------------------------------------------------------------------- command line


def command(tmp_path, sweep, *flags):
    config = tmp_path / "config.py"
    config.write_text(f"{CONFIG}\n\ndef get_sweep():\n    return {sweep!r}\n")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bpfree.sweeps.main",
            f"--config={config}",
            f"--workdir={tmp_path / 'sweep'}",
            *flags,
        ],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_get_sweep_that_fails_is_one_line_and_leaves_nothing(tmp_path):
    class Wrong:
        def __repr__(self):
            return "[][0]"

    out, err = command(tmp_path, Wrong()).communicate(timeout=300)
    place = rf"\({re.escape(str(tmp_path))}/config.py, line \d+\)"
    problem = "IndexError: list index out of range"
    assert re.fullmatch(rf"bpfree-sweep: get_sweep\(\): {problem} {place}\n", err), err
    assert out == "" and not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_command_line(tmp_path):
    process = command(tmp_path, [{"seed": 0}, {"seed": 1}, {"batch_size": 0}])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 of 3 points failed" in err, err
    assert "Traceback" not in err
    assert "[3/3] {'seed': 1}: validation 0." in out
    assert "| as it is | 2 |" in out and "best: bpfree-train --config=" in out


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_repeats_nothing(tmp_path):
    """Killed after the first point and again in the middle of others."""
    sweep = [{"seed": s, "batch_size": 16 + s} for s in range(4)]
    workdir = tmp_path / "sweep"
    for count in (1, 2):
        process = command(tmp_path, sweep, "--workers=1")
        until = time.monotonic() + 120
        while len(ledger.read(workdir)) < count and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(1)  # its worker ends with it
    done = {n: folder_of(workdir, n) / "result.json" for n in ledger.read(workdir)}
    times = {name: path.stat().st_mtime_ns for name, path in done.items()}
    process = command(tmp_path, sweep, "--workers=2")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(ledger.read(workdir)) == 4
    assert len(ledger.path_of(workdir).read_text().splitlines()) == 4
    assert {n: done[n].stat().st_mtime_ns for n in done} == times


@pytest.mark.slow
def test_points_that_fail_do_not_stop_the_others(tmp_path):
    """Bad config, NaN, and a worker that wants more memory than there is."""
    sweep = [
        {"batch_size": 8},
        {"batch_size": 4000},
        {"batch_size": 9, "rate.learning_rate": 1e30},
        {"batch_size": 10, "model.hidden": (2_000_000_000,)},
    ]
    process = command(tmp_path, sweep)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "3 of 4 points failed" in err
    records = list(ledger.read(tmp_path / "sweep").values())
    errors = {r["overrides"]["batch_size"]: r.get("error", "") for r in records}
    assert errors[8] == ""
    assert "exceeds the 1085 examples" in errors[4000]
    assert "TrainingFault: step 1" in errors[9]
    assert "memory" in errors[10].lower(), errors[10]
