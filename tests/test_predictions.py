"""bpfree-eval: predictions, the confusion matrix and a picture."""

import csv
import json
import shutil

import numpy as np
import pytest

from bpfree.training import evaluate, fit, load, predictions
from tests.test_losses import folder, settings
from tests.test_training import standard_promotion
from tests.test_workdir_faults import quick

assert standard_promotion and folder  # fixtures of this module, too


def rows(path):
    with open(path) as file:
        return list(csv.reader(file))


def run(workdir, monkeypatch, capsys, output=None):
    """What the command prints: a dict, and the lines on stderr."""
    monkeypatch.setattr(evaluate, "_OUTPUT", type("Flag", (), {"value": output}))
    monkeypatch.setattr(evaluate, "_PART", type("Flag", (), {"value": "validation"}))
    holder = type("Flag", (), {"value": str(workdir)})
    monkeypatch.setattr(evaluate.command_line, "WORKDIR", holder)
    capsys.readouterr()
    evaluate.main([])
    out, err = capsys.readouterr()
    return json.loads(out), err.splitlines()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("digits") / "run"
    fit(quick(), workdir)
    return workdir


def test_other_data_than_the_runs_are_said(digits, monkeypatch, capsys, tmp_path):
    shutil.copytree(digits, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    header, *rest = path.read_text().splitlines(keepends=True)
    known = json.loads(header)
    known["data"] |= {"train": 7}
    path.write_text("".join([json.dumps(known) + "\n", *rest]))
    _, said = run(tmp_path / "run", monkeypatch, capsys)
    (line,) = said
    assert line.endswith("not the run's own data; they differ in data.train")


def test_classes(digits, monkeypatch, capsys):
    found, said = run(digits, monkeypatch, capsys)
    assert said == [] and len(found["files"]) == 3
    where = digits / "evaluation" / "validation"
    head, *table = rows(where / "predictions.csv")
    assert head == ["example", "label", "prediction"] and len(table) == 357
    table = np.array(table, int)
    trained = load(digits)
    part = trained.job.data.validation
    logits = np.asarray(trained.model.apply(trained.variables, part["x"]))
    np.testing.assert_array_equal(table.T, [range(357), part["label"], logits.argmax(1)])
    _, *counts = rows(where / "confusion.csv")
    counts = np.array(counts, int)[:, 1:]
    np.testing.assert_array_equal(counts.sum(1), np.bincount(part["label"]))
    share = np.trace(counts) / counts.sum()
    assert found["validation/accuracy"] == pytest.approx(share, rel=1e-6)
    assert (where / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_real_numbers(folder, tmp_path, monkeypatch, capsys):
    fit(settings(folder, "plane"), tmp_path)
    found, said = run(tmp_path, monkeypatch, capsys)
    assert said == [] and len(found["files"]) == 2
    head, *table = rows(found["files"][0])
    assert head == ["example", "position", "label", "prediction"]
    table = np.array(table, float)
    assert len(table) == 12 * 2 and list(table[:3, 1]) == [0, 1, 0]
    mean = np.abs(table[:, 2] - table[:, 3]).mean()
    assert found["validation/absolute_error"] == pytest.approx(mean, rel=1e-5)


def test_sequences_and_outputs_that_are_no_logits(tmp_path):
    label = np.array([[0, 1], [1, 1]])
    outputs = np.eye(2)[[[0, 0], [1, 1]]]
    predictions.write(tmp_path, outputs, label, "title")
    assert rows(tmp_path / "predictions.csv")[2] == ["0", "1", "1", "0"]
    assert rows(tmp_path / "confusion.csv")[1:] == [["0", "1", "0"], ["1", "1", "2"]]
    with pytest.raises(ValueError, match=r"shape \(2, 3\), and the labels \(2, 2\)"):
        predictions.predicted(np.zeros((2, 3)), label)


def test_a_run_on_read_only_media(digits, tmp_path, monkeypatch, capsys):
    workdir = shutil.copytree(digits, tmp_path / "run")
    shutil.rmtree(workdir / "evaluation", ignore_errors=True)
    before = sorted(workdir.rglob("*"))
    monkeypatch.setattr(evaluate, "can_write", lambda path: False)
    found, (line,) = run(workdir, monkeypatch, capsys)
    assert "files" not in found and "--output=FOLDER" in line
    found, said = run(workdir, monkeypatch, capsys, output=tmp_path / "out")
    assert said == [] and (tmp_path / "out" / "confusion.csv").exists()
    assert sorted(workdir.rglob("*")) == before
