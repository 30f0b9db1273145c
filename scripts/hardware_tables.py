"""Tables of `scripts/absent_hardware.py`, from `results/`; see `scripts/tables.py`."""

import records
from cells import table

from bpfree.hardware.table import duration, size

CHIPS = {"h100": "H100", "v5e": "TPU v5e", "v6e": "TPU v6e"}
NAMES = {
    "likelihood ratio": "likelihood ratio, normals",
    "shared normals": "likelihood ratio, shared normals",
    "forward gradient": "forward gradient, nodes",
    "rank 1": "weight perturbation, rank 1",
    "feedback by responses": 'learned feedback, `teacher="responses"`',
    "feedback from half": "learned feedback, `fit_stride=2`",
    "dense signs": "weight perturbation, dense signs",
}
# Share of inference that was asked for on H100; of learned feedback, backprop's steps.
GOALS = {
    "likelihood ratio": "95 %",
    "shared normals": "95 %",
    "rank 1": "95 %",
    "dense signs": "60 %",
    "learned feedback": "1.7 x",
    "feedback by responses": "1.7 x",
    "feedback from half": "1.7 x",
}
# Of README: a column each, and the rows.
SHORT = {
    "absent_mlp_h100": "MLP, H100",
    "absent_mlp_v5e": "MLP, TPU v5e",
    "absent_transformer_h100": "GPT-2's size, H100",
    "absent_resnet18_h100": "ResNet-18, H100",
}
MAIN = ("node perturbation", "likelihood ratio", "rank 1", "learned feedback")


def absent_mlp() -> str:
    return _net("mlp", "105 %")


def absent_transformer() -> str:
    return _net("transformer", "100 %")


def absent_resnet18() -> str:
    return _net("resnet18", "100 %")


def absent_resnet50() -> str:
    return _net("resnet50", "100 %")


def absent_short() -> str:
    """README's table."""
    found = [records.read(name)["rows"] for name in SHORT]
    rows = [[NAMES.get(n, n), *(share(rows, n) for rows in found)] for n in MAIN]
    return table(["share of inference", *SHORT.values()], rows)


def _net(net: str, nodes: str) -> str:
    """A net's programs, a table for each chip that has a result file."""
    names = {chip: f"absent_{net}_{chip}" for chip in CHIPS}
    goals = {"node perturbation": nodes, **GOALS}
    return "\n".join(
        _chip(chip, records.read(name), goals if chip == "h100" else {})
        for chip, name in names.items()
        if (records.FOLDER / f"{name}.json").exists()
    )


def _chip(chip: str, record: dict, goals: dict[str, str]) -> str:
    rows = record["rows"]
    lines = [
        [
            NAMES.get(name, name),
            duration(row["step"]),
            share(rows, name),
            *([goals.get(name, "")] if goals else []),
            size(row["scratch"]),
            _reduced(row["collectives"]),
        ]
        for name, row in rows.items()
    ]
    goal = ["goal"] if goals else []
    head = [CHIPS[chip], "step, at least", "share of inference", *goal]
    made = table([*head, "scratch", "all-reduces"], lines)
    return f"{made}\n`{record['command']}` (JAX {record['versions']['jax']})\n"


def share(rows: dict[str, dict], name: str) -> str:
    """Of inference; of learned feedback, which makes one pass, backprop's steps."""
    if name == "backprop":
        return ""
    if "feedback" in name:
        return f"{rows[name]['step'] / rows['backprop']['step']:.1f} x backprop"
    return f"{100 * rows[name]['share']:.0f} %"


def _reduced(collectives: dict[str, list[float]]) -> str:
    count, sent = collectives.get("all-reduce", (0, 0))
    return f"{count:g}, {size(sent)}" if count else "none"
