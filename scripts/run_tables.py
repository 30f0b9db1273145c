"""Tables of `launched.py`: runs of the repository's configs; see `scripts/tables.py`."""

from statistics import mean, stdev
from typing import Any

import records
from cells import share, source, sources, table

Row = dict[str, Any]


def architectures() -> str:
    return _gaps("architectures")


def cifar10() -> str:
    return _gaps("resnet5", "vgg8", "perturbed", "resnet5_faster")


def fine_tuning() -> str:
    return _against_readout("fine_tuning", "what moves")


def local_modules() -> str:
    return _against_readout("local_modules", "nodes")


def digits() -> str:
    return _columns("digits", "MLP 64-128-128-10")


def first_run() -> str:
    """What README says of its first command."""
    record = records.read("digits")
    run = next(iter(record["rows"].values()))["accuracy"]
    values, seconds = run["accuracy"], run["seconds"]
    lines = [
        f"The first command ends with `test accuracy {values[0]:.4f}`, and leaves",
        "metrics (JSON lines), a checkpoint and `learning_curve.png` in `runs/digits`.",
        "It trains an MLP 64-128-128-10, and no error signal crosses a layer. Over seeds",
        f"{record['seeds'][0]} to {record['seeds'][-1]} (`bpfree-train "
        f"--config={run['config']} --config.seed=S`) the test accuracy",
        f"is **{100 * mean(values):.1f} %** (standard deviation "
        f"{100 * stdev(values):.2f}), in {min(seconds):.0f} to {max(seconds):.0f} s on",
        "two CPU cores.",
    ]
    return "\n".join(lines) + "\n"


def images() -> str:
    return _columns("images", "arm")


def thresholds() -> str:
    return _columns("thresholds", "784-50-10, thresholds")


def convnet() -> str:
    return _columns("convnet", "convnet 32-64-128, BatchNorm")


def energies_published() -> str:
    return _columns("energies_published", "784-256-256-10, shifted sigmoid")


def danp() -> str:
    return _columns("danp", "MLP 784-1024x3-10")


def _gaps(*names: str) -> str:
    """Each method beside its twin and its control."""
    found = [records.read(name) for name in names]
    rows = [
        [
            text,
            _config(row["method"]),
            *(_accuracy(row[c], 3) for c in ("method", "twin", "control")),
            _gap(row["method"], row["twin"], row["control"]),
        ]
        for record in found
        for text, row in record["rows"].items()
    ]
    head = ["net, data: method", "config", "test accuracy", "twin", "control", "gap"]
    return table(head, rows) + sources(found)


def _against_readout(name: str, title: str) -> str:
    """Columns of methods, with the share of the way from the readout to backprop."""
    record = records.read(name)
    rows = []
    for text, row in record["rows"].items():
        ends = row["backprop"], row["readout"]
        line = [text, _config(row["node perturbation"])]
        line += [_accuracy(end, 3) for end in reversed(ends)]
        for column in ("node perturbation", "learned feedback"):
            line += [_accuracy(row[column], 3), _gap(row[column], *ends)]
        rows.append(line)
    head = [title, "config", "readout alone", "backprop", "node perturbation", "gap"]
    return table([*head, "learned feedback", "gap"], rows) + source(record)


def _columns(name: str, title: str) -> str:
    """A column for each run of a row."""
    record = records.read(name)
    rows = [
        [text, *(f"{_accuracy(run)} ({_config(run)})" for run in row.values())]
        for text, row in record["rows"].items()
    ]
    columns = next(iter(record["rows"].values()))
    return table([title, *columns], rows) + source(record)


def _config(run: Row) -> str:
    return f"`{run['config']}{' ' * bool(run['changes'])}{run['changes']}`"


def _accuracy(run: Row, digits: int = 4) -> str:
    """Mean and spread; how many seeds, where they are not three."""
    values = run["accuracy"]
    if len(values) == 1:
        return f"{share(values[0], digits)}, one seed"
    text = f"{share(mean(values), digits)} +- {share(stdev(values), digits)}"
    return text if len(values) == 3 else f"{text}, {len(values)} seeds"


def _gap(method: Row, twin: Row, control: Row) -> str:
    """`records.gap` of the mean accuracies; bold below 0.70, the bar."""
    gap = records.gap(*(mean(run["accuracy"]) for run in (method, control, twin)))
    return f"{gap:.2f}" if gap >= 0.7 else f"**{gap:.2f}**"
