"""Scripts of scripts/ run, and the commands in their docstrings name flags they have."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py"))
DEFINED = re.compile(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"')
COMMAND = re.compile(r"scripts/(\w+)\.py(.*?)(?=python |\Z)", re.DOTALL)

# The main path of each with tiny flags, on data that needs no download.
SMALL = {
    "alignment": "--samples=2 --repeats=2 --seeds=1 --only=wp",
    "batch_statistics": "--seeds=2 --repeats=2 --passes 5",
    "benchmark": "--models=mlp --samples=2 --rounds=1 --only=wp --batch=4 --chunk=2",
    "benchmark_ep": "--nets=mlp --rounds=1 --batches=1",
    "compare_decorrelation": "--net=mlp --time --arms=backprop,dbp --batch=2 --rounds=1",
    "compare_estimators": "--cost=4 --steps=1 --repeats=2 --seeds=1",
    "compare_training": "--data=digits --arms=backprop,np --steps=2 --seeds=1 --batch=4",
    "credit": "--samples=2 --repeats=2",
    "ep_depth": "--depths=2 --seeds=1 --batch=1 --narrow=64 --sweeps=1",
    "ep_feedback": "--seeds=1 --batch=1",
    "launcher_overhead": "--config=configs/digits.py:smoke --rounds=1 --steps=4",
    "layerwise_cost": "--layers=2 --width=8 --batch=4 --samples=2 --rounds=1",
    "norm_scales": "--seeds=2 --repeats=2 --num_samples=1",
    "pipeline": "--stages=2 --width=4 --batch=4 --parts=2 --samples=2",
    "scaling": "--samples=64 --batch=16",
    "time_parallel": "--cells=gru --lengths=4 --hidden=4 --batch=2 --rounds=1",
}


def commands(name):
    """(script, its flags) of each command in the docstring of a script."""
    doc = ast.get_docstring(ast.parse((ROOT / f"scripts/{name}.py").read_text()))
    for paragraph in doc.split("\n\n"):
        if paragraph.startswith("    "):
            for script, rest in COMMAND.findall(paragraph):
                yield script, re.findall(r"--(\w+)", rest)


def unknown(script, flags):
    """The flags that the script does not define."""
    text = (ROOT / f"scripts/{script}.py").read_text()
    return set(flags) - set(DEFINED.findall(text))


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_in_docstrings_have_flags_that_exist(name):
    for script, flags in commands(name):
        assert not unknown(script, flags), script


def test_flags_are_found_in_docstrings_and_a_wrong_one_is_rejected():
    assert ("ep_depth", ["depths", "seeds", "out"]) in commands("ep_depth")
    assert sum(len(flags) for name in SCRIPTS for _, flags in commands(name)) > 50
    assert unknown("ep_depth", ["depths", "seed"]) == {"seed"}
    assert unknown("scaling", ["samples", "sample"]) == {"sample"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_main_path_runs(name):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, f"scripts/{name}.py", *SMALL[name].split()]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
