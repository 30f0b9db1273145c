"""The tables of scripts/launched.py: their configs exist, their runs have own places."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
from absl import flags

from bpfree.training import metrics

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def launched():
    """The script with its flags at their defaults, in tables of a made-up config."""
    sys.path.insert(0, str(ROOT / "scripts"))
    before = set(flags.FLAGS)
    module = importlib.import_module("launched")
    flags.FLAGS(["launched"])
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture
def folder(launched, tmp_path):
    flags.FLAGS.folder, flags.FLAGS.results = str(tmp_path), str(tmp_path / "a.json")
    return tmp_path


def all_runs(launched):
    tables = launched.TABLES.values()
    return {run for rows in tables for row in rows.values() for run in row.values()}


def end(launched, run, seed, accuracy, **header):
    """Make the files of a run that has ended."""
    place = launched.workdir(run, seed)
    place.mkdir(parents=True)
    metrics.write(place, "header", {**metrics.environment(), **header})
    metrics.write(place, "summary", {"test/accuracy": accuracy, "seconds": 2.0})


def test_every_run_has_a_config_and_a_place_of_its_own(launched):
    runs = all_runs(launched)
    for config, arm in {(run.config, run.arm) for run in runs}:
        runpy.run_path(str(ROOT / f"configs/{config}.py"))["get_config"](arm)
    places = {launched.workdir(run, 0): run._replace(seeds=0) for run in runs}
    assert len(places) == len({run._replace(seeds=0) for run in runs})


def test_a_run_begins_from_its_first_one(launched, folder, monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        end(launched, first if len(commands) == 1 else second, 0, 0.5)

    first = launched.Run("finetune", "pretrain")
    second = launched.Run("finetune", "all", begins=first)
    monkeypatch.setattr(launched.subprocess, "run", run)
    launched.ensure(second, 0)
    launched.ensure(second, 0)  # finished
    pretrain, tuned = (" ".join(command) for command in commands)
    assert "finetune.py:pretrain --config.seed=0" in pretrain
    assert f"--config.pretrained.workdir={folder}/finetune_pretrain_0" in tuned


def test_rows_with_what_is_finished_are_written(launched, folder):
    done, begun, waiting = (launched.Run("vit", arm) for arm in ("bp", "dnp", "dbp"))
    for seed, accuracy in enumerate([0.5, 0.75]):
        end(launched, done, seed, accuracy)
    end(launched, begun, 0, 0.25)
    both, half = {"a": done, "b": begun}, {"a": done, "b": waiting}
    launched.write({"both": both, "half": half})
    record = json.loads((folder / "a.json").read_text())
    assert record["seeds"] == [0, 1] and list(record["rows"]) == ["both"]
    row = record["rows"]["both"]
    assert row["a"]["accuracy"] == [0.5, 0.75] and row["b"]["accuracy"] == [0.25]
    assert row["a"]["config"] == "vit:bp" and row["a"]["seconds"] == [2.0, 2.0]


def test_a_run_with_other_versions_is_an_error(launched, folder):
    run = launched.Run("vit", "bp")
    end(launched, run, 0, 0.5, versions={"jax": "0.1"})
    with pytest.raises(RuntimeError, match="other versions"):
        launched.finished(run, 0)
