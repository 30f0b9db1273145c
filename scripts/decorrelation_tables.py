"""Tables of `compare_decorrelation.py`; see `scripts/tables.py`."""

from statistics import mean
from typing import Any

import records
from cells import share, source, sources, table, with_spread

ARMS = {
    "backprop": "Adam",
    "backprop raw": "Adam, raw inputs",
    "backprop zca": "Adam, ZCA-whitened inputs",
    "default": "`decorrelate(adam)`",
    "default raw": "`decorrelate(adam)`, raw inputs",
    "default zca": "`decorrelate(adam)`, ZCA-whitened inputs",
    "default input": "`decorrelate(adam)`, input layer only",
    "default hidden": "`decorrelate(adam)`, hidden layers only",
    "whiten": '`rule="whiten"`',
    "dbp": "`decorrelation.dbp()` at every step",
    "dbp input": "`decorrelation.dbp()`, input layer only",
    "dbp hidden": "`decorrelation.dbp()`, hidden layers only",
    "dbp every 10": "`decorrelation.dbp()` every 10 steps",
    "dbp every 10 blocks": "`decorrelation.dbp()` every 10 steps",
    "foof every 20 quarter": "`decorrelate(adam, every=20, fraction=0.25)`",
}
NETS = {
    "convnet": "convnet",
    "resnet": "ResNet-18, width 16, no norm",
    "mlp": "MLP",
}


def decorrelation_convnet() -> str:
    return _compared("convnet")


def decorrelation_resnet() -> str:
    return _compared("resnet")


def decorrelation_resnet_inputs() -> str:
    return _compared("resnet", "_inputs")


def decorrelation_mlp() -> str:
    return _compared("mlp")


def decorrelation_time() -> str:
    """A step of each arm over Adam's, by net."""
    found = {net: records.read(f"decorrelation_{net}_time") for net in NETS}
    rows = [
        [NETS[net], ARMS[arm], f"{row['cpu']:.2f}", f"{row['wall']:.2f}"]
        for net, record in found.items()
        for arm, row in record["rows"].items()
        if arm != "backprop"
    ]
    text = table(["net", "optimiser", "CPU time", "wall time"], rows)
    return text + sources(found.values())


def _compared(net: str, which: str = "") -> str:
    record = records.read(f"decorrelation_{net}{which}")
    times = records.read(f"decorrelation_{net}_time")["rows"]
    rows = [
        [
            text,
            f"{row['rate']:.0e}".replace("e-0", "e-"),
            _steps(row["steps"]),
            _seconds(row, times.get(arm.removesuffix(" raw").removesuffix(" zca"))),
            with_spread(row, "loss", 3),
            with_spread(row, "accuracy", 3),
        ]
        for arm, text in ARMS.items()
        if (row := record["rows"].get(arm))
    ]
    head = ["optimiser", "rate", "steps", "seconds", "final loss", "test accuracy"]
    return table(head, rows) + source(record)


def _steps(shares: list[float | None] | str) -> str:
    """Mean and range over the seeds; those that never came there are counted."""
    if isinstance(shares, str):  # typed from a log
        return shares
    reached = [s for s in shares if s is not None]
    if not reached:
        return "never"
    if len(reached) < len(shares):
        return f"{len(reached)} of {len(shares)} seeds"
    low, middle, high = (share(f(reached), 2) for f in (min, mean, max))
    return f"{middle} ({low} to {high})" if low != high else middle


def _seconds(row: dict[str, Any], time: dict[str, float] | None) -> str:
    """Steps times the wall time of a step, where it was measured."""
    shares = row["steps"]
    if "seconds" in row:  # typed from a log
        return row["seconds"]
    return share(mean(shares) * time["wall"], 2) if time and all(shares) else ""
