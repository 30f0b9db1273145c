"""Tables of `scripts/absent_hardware.py`, from `results/`; see `scripts/tables.py`."""

import records
from cells import source, table

from bpfree.hardware.table import duration, size

CHIPS = {"h100": "H100", "v5e": "TPU v5e", "v6e": "TPU v6e"}
NAMES = {
    "likelihood ratio": "likelihood ratio, normals",
    "shared normals": "likelihood ratio, shared normals",
    "forward gradient": "forward gradient, nodes",
    "rank 1": "weight perturbation, rank 1",
    "dense signs": "weight perturbation, dense signs",
}
# Share of inference that was asked for on H100; of learned feedback, backprop's steps.
GOALS = {
    "likelihood ratio": "95 %",
    "shared normals": "95 %",
    "rank 1": "95 %",
    "dense signs": "60 %",
    "learned feedback": "1.7 x",
}


def absent_mlp() -> str:
    return _net("mlp", "105 %")


def absent_transformer() -> str:
    return _net("transformer", "100 %")


def absent_resnet18() -> str:
    return _net("resnet18", "100 %")


def absent_resnet50() -> str:
    return _net("resnet50", "100 %")


def _net(net: str, nodes: str) -> str:
    """A net's programs on every chip that has a result file."""
    goals = {"node perturbation": nodes, **GOALS}
    found = _records(net)
    rows = [
        [
            NAMES.get(name, name),
            goals.get(name, ""),
            *(cell for r in found.values() for cell in _cells(r["rows"], name)),
        ]
        for name in dict.fromkeys(n for r in found.values() for n in r["rows"])
    ]
    columns = ("step", "share", "scratch", "all-reduces")
    head = [f"{CHIPS[chip]}: {c}" for chip in found for c in columns]
    return table(["program", "goal", *head], rows) + "".join(map(source, found.values()))


def _records(net: str) -> dict[str, dict]:
    names = {chip: f"absent_{net}_{chip}" for chip in CHIPS}
    return {
        chip: records.read(name)
        for chip, name in names.items()
        if (records.FOLDER / f"{name}.json").exists()
    }


def _cells(rows: dict[str, dict], name: str) -> list[str]:
    if name not in rows:
        return [""] * 4
    row = rows[name]
    count, sent = row["collectives"].get("all-reduce", (0, 0))
    reduced = f"{count:g}, {size(sent)}" if count else "none"
    return [duration(row["step"]), share(rows, name), size(row["scratch"]), reduced]


def share(rows: dict[str, dict], name: str) -> str:
    """Of inference; of what makes one pass, its cost in steps of backprop."""
    if name == "backprop":
        return ""
    if name == "learned feedback":
        return f"{rows[name]['step'] / rows['backprop']['step']:.1f} x"
    return f"{100 * rows[name]['share']:.0f} %"
