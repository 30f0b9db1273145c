"""Tables of runs by `bpfree-train` with configs of the repository.

    BPFREE_DATA_DIR=... python scripts/launched.py --table=architectures
        [--only=vit,spiking] [--seeds=3] [--folder=runs/launched] [--collect]
        [--results=results/architectures.json]

The tables are in `launched_runs.py`. Every run has a directory of its own inside the
folder, and what is finished there is not run again: the script may be stopped and called
again. Seeds are the outer loop. After every run the result file has what is finished so
far: the rows whose runs all have one seed or more, each run with a list over its seeds.
"""

import subprocess
from pathlib import Path
from typing import Any

import records
from absl import app, flags
from launched_runs import TABLES, Row, Run

from bpfree.training import metrics

TABLE = flags.DEFINE_enum("table", "architectures", list(TABLES), "which table")
ONLY = flags.DEFINE_list("only", [], "runs whose configs begin so; none: all")
SEEDS = flags.DEFINE_integer("seeds", 3, "seeds of each run; some stop earlier")
FOLDER = flags.DEFINE_string("folder", "runs/launched", "where the runs go")
COLLECT = flags.DEFINE_bool("collect", False, "run nothing, take what is finished")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")

CONFIGS = Path(__file__).parent.parent / "configs"


def workdir(run: Run, seed: int) -> Path:
    """The place of a run; of its changes the first names it."""
    parts = [run.config, run.arm or "default", *run.changes[:1], str(seed)]
    return Path(FOLDER.value) / "_".join(parts).replace("=", "_")


def command(run: Run, seed: int) -> list[str]:
    config = f"{CONFIGS / run.config}.py" + (f":{run.arm}" if run.arm else "")
    changes = [*run.changes, f"seed={seed}"]
    if run.begins:
        changes.append(f"pretrained.workdir={workdir(run.begins, 0)}")
    flags = [f"--config.{change}" for change in changes]
    return [
        "bpfree-train",
        f"--config={config}",
        *flags,
        f"--workdir={workdir(run, seed)}",
    ]


def finished(run: Run, seed: int) -> dict[str, Any] | None:
    """The summary of a run that has ended, from its last line.

    Raises RuntimeError if its versions or device are not those of this process.
    """
    place = workdir(run, seed)
    lines = metrics.read(place) if metrics.path_of(place).exists() else []
    ended = [line for line in lines if line["kind"] == "summary"]
    if ended and any(lines[0][k] != v for k, v in metrics.environment().items()):
        raise RuntimeError(f"{place} was run with other versions or devices")
    return ended[-1] if ended else None


def ensure(run: Run, seed: int) -> None:
    """Run what is not finished yet, after the run that it begins from."""
    if run.begins:
        ensure(run.begins, 0)
    if finished(run, seed) is None:
        subprocess.run(command(run, seed), check=True)


def collected(run: Run) -> dict[str, Any]:
    """Accuracy and seconds of training of the first seeds, as far as they are there."""
    ended = []
    while len(ended) < SEEDS.value and (found := finished(run, len(ended))):
        ended.append(found)
    return {
        "config": f"{run.config}:{run.arm}".removesuffix(":"),
        "changes": " ".join(f"--config.{change}" for change in run.changes),
        "accuracy": [round(end["test/accuracy"], 5) for end in ended],
        "seconds": [round(end["seconds"], 1) for end in ended],
    }


def write(rows: dict[str, Row]) -> None:
    """The rows of which every run has a seed."""
    found = {
        name: {column: collected(run) for column, run in row.items()}
        for name, row in rows.items()
    }
    seeds = {
        name: [len(run["accuracy"]) for run in row.values()]
        for name, row in found.items()
    }
    complete = {name: row for name, row in found.items() if min(seeds[name])}
    most = max((max(seeds[name]) for name in complete), default=0)
    records.write(RESULTS.value, list(range(most)), complete)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    rows = TABLES[TABLE.value]
    chosen = [run for row in rows.values() for run in row.values() if wanted(run)]
    for seed in range(0 if COLLECT.value else SEEDS.value):
        for run in chosen:
            if seed < run.seeds:
                ensure(run, seed)
                print(run.config, run.arm, collected(run), flush=True)
                if RESULTS.value:
                    write(rows)
    if RESULTS.value:
        write(rows)


def wanted(run: Run) -> bool:
    name = f"{run.config}:{run.arm}"
    return not ONLY.value or any(name.startswith(start) for start in ONLY.value)


if __name__ == "__main__":
    app.run(main)
