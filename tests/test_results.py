"""Tables of README and documentation are what `scripts/tables.py` makes of `results/`."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch):
    """A module of scripts/, by name."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    yield importlib.import_module
    for name in ("tables", "records", "launched_runs"):
        sys.modules.pop(name, None)


def test_every_page_has_the_tables_that_its_results_give(script):
    tables = script("tables")
    marked = [p for p in tables.pages() if tables.MARKED.search(p.read_text())]
    assert {p.name for p in marked} >= {"README.md", "choose.md", "estimators.md"}
    for page in marked:
        text = page.read_text()
        assert text.count("<!-- results:") == len(tables.MARKED.findall(text))
        assert tables.filled(text) == text, f"{page}: run python scripts/tables.py"


def test_a_figure_typed_by_hand_is_found(script):
    tables = script("tables")
    text = (ROOT / "docs/choose.md").read_text()
    table = tables.MARKED.search(text)
    number = re.search(r"\.\d{3}", table[0])[0]
    typed = text.replace(table[0], table[0].replace(number, ".999"))
    assert typed != text and tables.filled(typed) == text


def test_an_unknown_mark_is_an_error(script):
    with pytest.raises(KeyError, match="unheard_of"):
        script("tables").filled("<!-- results: unheard_of -->\n<!-- end -->\n")


COUNTED = ("first_call", "benchmark", "absent_")  # what no seed changes


def test_every_result_says_how_it_was_made():
    files = sorted((ROOT / "results").glob("*.json"))
    assert files
    for file in files:
        record = json.loads(file.read_text())
        assert record["command"].startswith(("python scripts/", "bpfree-train "))
        counted = file.stem.startswith(COUNTED) or file.stem.endswith("_time")
        assert record["seeds"] or counted
        assert "jax" in record["versions"] and record["rows"]
        assert record["device"]["platform"] in ("cpu", "gpu", "tpu")


def test_a_script_records_its_command_and_short_numbers(script, tmp_path, monkeypatch):
    records = script("records")
    out = tmp_path / "some.json"
    arguments = ["scripts/some.py", "--arms=np gaussian", f"--results={out}"]
    monkeypatch.setattr(sys, "argv", arguments)
    records.write(str(out), [0, 1], {"np": {"samples": 4, "cosine": 0.123456789}})
    record = json.loads(out.read_text())
    assert record["command"] == "python scripts/some.py '--arms=np gaussian'"
    assert record["rows"] == {"np": {"samples": 4, "cosine": 0.12346}}
    assert record["seeds"] == [0, 1] and record["device"]["platform"] == "cpu"
