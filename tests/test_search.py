"""Optuna chooses the points; workers are faked, but for one slow test with submitit."""

import json
import math
import signal

import pytest

from bpfree.sweeps import ledger, make_points, result, schedule
from bpfree.sweeps.points import make_point
from bpfree.sweeps.worker import folder_of
from bpfree.training import ConfigError, metrics
from tests.test_sweeps import ACCURACY, get_config
from tests.test_training import standard_promotion

assert standard_promotion  # a fixture for every test of this module, too
optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {
    "rate.learning_rate": ("log", 1e-4, 1.0),
    "estimator.num_samples": ("choice", (2, 4)),
    "batch_size": ("int", 8, 9),
}


def accuracy(point):
    """Best at a learning rate of 0.01."""
    rate = point["rate.learning_rate"]
    return 1 / (1 + math.log10(rate / 0.01) ** 2)


class Worker:
    """Logs four points, one a look; then writes its result."""

    def __init__(self, workdir, names, slot, fail=()):
        (self.name,), self.folder = names, folder_of(workdir, names[0])
        self.final = accuracy(overrides(self.folder))
        self.step, self.status, self.fail = 0, None, fail

    def poll(self):
        if self.status is None:
            self.step += 1
            record = {
                "step": self.step,
                "validation/accuracy": self.final * self.step / 4,
            }
            metrics.write(self.folder, "log", record)
            if self.step == 4:
                self.status = self._end()
        return self.status

    def _end(self):
        summary = {"step": 1, "seconds": 1, "test/accuracy": 0.5}
        summary["validation/accuracy"] = self.final
        found = result.done(summary, [{"train/loss": 1.0}], ACCURACY)
        result.write(self.folder, found)
        return 0

    def terminate(self):
        self.status = 128 + signal.SIGTERM


def overrides(folder):
    return json.loads((folder / "point.json").read_text())["overrides"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(schedule.time, "sleep", lambda seconds: None)


def hunt(study, workdir, trials=12, start=Worker, space=SPACE):
    from bpfree.sweeps import search

    made = lambda given: make_point(get_config(), given)  # noqa: E731
    return search.search(
        study, space, made, workdir, trials=trials, workers=2, start=start
    )


def study_of(kind, storage=None):
    from bpfree.sweeps import search

    return search.make_study(kind, 0, storage)


def test_tpe_finds_the_best_rate(tmp_path):
    study = study_of("tpe")
    records = hunt(study, tmp_path, trials=25)
    assert len(study.trials) == 25
    best = max(records.values(), key=lambda r: r["validation/accuracy"])
    assert best["validation/accuracy"] == study.best_value > 0.97
    assert best["overrides"] == study.best_params
    assert 0.005 < best["overrides"]["rate.learning_rate"] < 0.02


def test_halving_stops_poor_points(tmp_path):
    records = hunt(study_of("halving"), tmp_path, trials=16)
    by_status = {
        status: [
            accuracy(r["overrides"]) for r in records.values() if r["status"] == status
        ]
        for status in ("done", "pruned")
    }
    assert by_status["done"] and len(by_status["pruned"]) >= 4
    assert max(by_status["done"]) > max(by_status["pruned"])


def test_a_killed_search_goes_on_and_takes_up_what_ran(tmp_path):
    """The same storage file; the points that ran are run again, finished ones not."""
    storage = optuna.storages.InMemoryStorage()

    class Stuck(Worker):
        started: list = []

        def __init__(self, *args):
            super().__init__(*args)
            Stuck.started.append(self.name)

        def poll(self):
            if len(Stuck.started) > 4:
                raise KeyboardInterrupt  # a kill, as far as we can see
            return super().poll()

    with pytest.raises(KeyboardInterrupt):
        hunt(study_of("random", storage), tmp_path / "s", start=Stuck)
    done = set(ledger.read(tmp_path / "s"))
    left = set(Stuck.started) - done
    assert done and left
    seen = []

    class Seen(Worker):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self.name)

    study = study_of("random", storage)
    records = hunt(study, tmp_path / "s", start=Seen)
    assert left <= set(seen) and not done & set(seen)
    assert len(records) == 12 and len(seen) == 12 - len(done)


def test_two_directories_share_a_storage(tmp_path):
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    first = hunt(study_of("random", storage), tmp_path / "a", trials=3)
    second = hunt(study_of("tpe", storage), tmp_path / "b", trials=5)
    assert len(first) == 3 and len(second) == 2


def test_points_that_repeat_or_fail_end_a_search_all_the_same(tmp_path):
    space = {"batch_size": ("choice", (8, 0))}
    study = study_of("random")

    class Fast(Worker):
        def __init__(self, workdir, names, slot):
            result.write(folder_of(workdir, names[0]), result.failed("NaN"))
            self.status = 0

    records = hunt(study, tmp_path, trials=6, start=Fast, space=space)
    assert {r["overrides"]["batch_size"]: r["error"] for r in records.values()} == {
        8: "NaN",
        0: "config.batch_size=0 must be at least 1",
    }
    assert len(study.trials) == 6


@pytest.mark.parametrize(
    "space, message",
    [
        ({}, "returns no ranges"),
        ({"seed": ("normal", 0, 1)}, "kind 'normal' is unknown"),
        ({"seed": ("int", 0)}, r"must be \(kind, low, high\)"),
    ],
)
def test_a_bad_space(space, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        hunt(study_of("random"), tmp_path, space=space)


def test_an_unknown_search():
    with pytest.raises(ConfigError, match="--search 'grid' is unknown"):
        study_of("grid")


# ------------------------------------------------------------------------------ cluster


def test_options_that_submitit_refuses(tmp_path, monkeypatch):
    """They are tried before anything runs, and leave no folder where one stands."""
    pytest.importorskip("submitit")
    from bpfree.sweeps import cluster

    monkeypatch.chdir(tmp_path)
    cluster.make_start("local", {"timeout_min": 5})
    with pytest.raises(ConfigError, match="--cluster=local: .*hours"):
        cluster.make_start("local", {"hours": 3})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_points_as_jobs_of_submitit(tmp_path, monkeypatch):
    """Its executor of this machine stands for SLURM: the same calls."""
    pytest.importorskip("submitit")
    monkeypatch.undo()  # real waiting
    from bpfree.sweeps import cluster

    sweep = [{"batch_size": 8}, {"batch_size": 9, "rate.learning_rate": 1e30}]
    found = make_points(get_config, sweep)
    start = cluster.make_start("local", {"timeout_min": 5})
    records = schedule.sweep(found, tmp_path, workers=2, start=start)
    good, bad = (records[point.name] for point in found)
    assert good["status"] == "done" and 0 < good["validation/accuracy"] < 1
    assert bad["status"] == "failed" and "not finite" in bad["error"]
