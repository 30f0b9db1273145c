"""Programs compiled for accelerators that are not here cost what the stored table says.

    pytest -m slow tests/test_absent_hardware.py      Python 3.12, extras tpu and cuda
    python tests/test_absent_hardware.py              writes tests/absent_hardware.json

Each target is compiled in a process without the strict settings of the suite.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "absent_hardware.json"
TARGETS = {"tpu:v5e:2x2": ("libtpu",), "h100:4": ("jax_cuda13_plugin",)}
FAMILIES = ("node perturbation", "rank 1", "forward gradient", "learned feedback")
MAIN = "digits, sample:2,data:2"
BYTES = 0.05  # relative


def compiled(target):
    """{program: its figures} of the main job and one estimator of each family."""
    import absent_hardware
    import absent_nets

    from bpfree import hardware
    from bpfree.hardware import config as of_config
    from bpfree.training import config, config_files, job

    chosen = hardware.find(target)
    hardware.targets.stay_on_cpu(chosen)
    net = absent_nets.mlp(batch=64, width=512)
    reports = dict(absent_hardware.reports(target, net, 16, FAMILIES))
    made = config_files.load("digits").names["get_config"]()
    made.mesh, made.estimator.num_samples = "sample:2,data:2", 32
    settings = config.read(made)
    data = job.load(settings)
    draft = job.draft(settings, data, hardware.devices(chosen))
    reports[MAIN] = of_config.of_step(settings, draft, data, chosen)
    return {name: figures(report) for name, report in reports.items()}


def found(target):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    run = subprocess.run(
        [sys.executable, __file__, target],
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def figures(report):
    """Of one device and step; a kernel in a loop counts as often as it runs."""
    return {
        "kernels": round(report.kernels, 3),
        "bytes": round(report.bytes),
        "collectives": {
            kind: [round(c.calls, 3), round(c.bytes)]
            for kind, c in sorted(report.collectives.items())
        },
    }


def departures(found, stored):
    """What is not as it was stored; [] where all is."""
    lines = []
    for name in {**stored, **found}:
        old, new = stored.get(name), found.get(name)
        if old is None or new is None:
            lines.append(f"{name}: {'not stored' if old is None else 'missing'}")
            continue
        for key in ("kernels", "collectives"):
            if old[key] != new[key]:
                lines.append(f"{name}: {key} {new[key]}, stored {old[key]}")
        if abs(new["bytes"] / old["bytes"] - 1) > BYTES:
            lines.append(f"{name}: bytes {new['bytes']:.3g}, stored {old['bytes']:.3g}")
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_programs_cost_what_is_stored(target):
    """Of the versions of JAX and compilers in the file; others fuse otherwise."""
    missing = [m for m in TARGETS[target] if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"{target} needs {missing[0]}: extras tpu and cuda, Python 3.12")
    stored = json.loads(STORED.read_text())
    if stored["jax"] != jax.__version__:
        pytest.skip(f"stored with JAX {stored['jax']}, here is {jax.__version__}")
    assert departures(found(target), stored["targets"][target]) == []


EXAMPLE = {
    "program": {"kernels": 10, "bytes": 1000, "collectives": {"all-reduce": [1, 400]}}
}


@pytest.mark.parametrize(
    "changed",
    [
        {"kernels": 11},
        {"bytes": 1060},
        {"collectives": {"all-reduce": [2, 400]}},
        {"collectives": {"all-reduce": [1, 400], "all-gather": [1, 8]}},
    ],
)
def test_a_regression_would_be_seen(changed):
    """The fault, planted: one kernel, 6 % of the bytes or one collective more."""
    worse = {"program": EXAMPLE["program"] | changed}
    assert departures(worse, EXAMPLE) and not departures(EXAMPLE, EXAMPLE)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(compiled(sys.argv[1])))
    else:
        stored = {"jax": jax.__version__, "targets": {t: found(t) for t in TARGETS}}
        STORED.write_text(json.dumps(stored, indent=1) + "\n")
