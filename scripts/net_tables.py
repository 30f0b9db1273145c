"""Tables of nets and data sets, from `results/`; see `scripts/tables.py`."""

import records
from cells import source, sources, table, with_spread

MOVES = {
    "untouched": ("-", "nothing"),
    "bp": ("`backprop()`", "all"),
    "scratch": ("`backprop()`", "all, from random weights"),
    "feedback": ("`learned_feedback(fit_stride=2)`", "all"),
    "readout": ("`backprop()`", "the last layer: no error crosses a weight"),
    "np": ("`node_perturbation()`", "adapters of rank 4, the last layers"),
    "wp": ("`weight_perturbation(rank=1)`", "all"),
}


def pretrained_characters() -> str:
    return _pretrained("characters", "bits", "bits per character")


def pretrained_characters_longer() -> str:
    return _pretrained("characters_longer", "bits", "bits per character")


def pretrained_pronunciation() -> str:
    return _pretrained("pronunciation", "right", "words right")


def pretrained_pronunciation_longer() -> str:
    return _pretrained("pronunciation_longer", "right", "words right")


def _pretrained(name: str, metric: str, title: str) -> str:
    """Arms of `scripts/pretrained.py`; the gap is from the untouched net to backprop."""
    record = records.read(f"pretrained_{name}")
    rows = record["rows"]
    start, end = (rows[arm][metric] for arm in ("untouched", "bp"))

    def line(arm):
        r = rows[arm]
        gap = f"{records.gap(r[metric], start, end):.2f}"
        if arm == "untouched":
            return [*MOVES[arm], "", "", "", "", f"{r[metric]:.3f}", ""]
        crossed = "all" if r["carried"] is None else str(r["carried"])
        found = f"{r[metric]:.3f} +- {r[metric + '_std']:.3f}"
        run = [str(r["steps"]), f"{r['rate']:g}", crossed, f"{r['memory']:.0f}"]
        return [*MOVES[arm], *run, found, gap]

    head = ["estimator", "what moves", "steps", "rate", "carried", "MB", title, "gap"]
    return table(head, map(line, (arm for arm in MOVES if arm in rows))) + source(record)


DEEP = {
    "backprop": "`backprop()`, the twin",
    "frozen": "`backprop()`, the last layer alone, the control",
    "jvp": "`learned_feedback()`",
    "jvp half": "`learned_feedback(fit_stride=2)`",
    "jvp quarter": "`learned_feedback(fit_stride=4)`",
    "responses": '`learned_feedback(teacher="responses")`',
}


def depth_transformer() -> str:
    names = (f"depth_transformer{depth}" for depth in ("_3", "_6", "", "_24"))
    return _depth("blocks", "bits per character", list(map(records.read, names)))


def depth_resnet20() -> str:
    return _depth("layers", "bits per image", [records.read("depth_resnet20")])


def depth_resnet20_longer() -> str:
    return _depth("layers", "bits per image", [records.read("depth_resnet20_longer")])


def depth_tiny_imagenet_20() -> str:
    return _depth("layers", "bits per image", [records.read("depth_tiny_imagenet_20")])


def _depth(unit: str, bits: str, found) -> str:
    """Arms of `scripts/depth.py`; the gap is from the control to the twin."""
    lines = []
    for rows in (record["rows"] for record in found):
        for r in rows.values():
            start, end = (
                rows[f"{r['depth']} layers: {arm}"]["accuracy"]
                for arm in ("frozen", "backprop")
            )
            line = [str(r["depth"]), DEEP[r["arm"]], f"{r['rate']:g}"]
            line += [with_spread(r, name, 3) for name in ("accuracy", "bits")]
            line += [f"{records.gap(r['accuracy'], start, end):.2f}"]
            lines.append([*line, with_spread(r, "ratio", 2)])
    head = [unit, "estimator", "rate", "test accuracy", bits, "gap"]
    return table([*head, "seconds over the twin's"], lines) + sources(found)


RULES = {
    "backprop": "backprop",
    "backprop early": "backprop, stopped after 1,300 steps",
    "backprop noise": "backprop through the same noise",
    "lr": "`likelihood_ratio`, sigma 0.5",
    "lr threshold": "the same, threshold units",
    "np": "`node_perturbation`",
    "anp": "`activity_node_perturbation`",
    "feedback": "`learned_feedback`",
    "ep": "`equilibrium_propagation`",
    "decorrelated": "`decorrelate`, the `dbp` rule",
}


def robustness() -> str:
    record = records.read("robustness")
    columns = ["clean", "transfer", "pgd", "search", "gaussian", "contrast"]
    rows = [
        [text, *(with_spread(record["rows"][name], c, 3) for c in columns)]
        for name, text in RULES.items()
    ]
    head = ["clean", "transfer", "PGD", "search", "Gaussian .3", "contrast - .6"]
    return table(["trained by", *head], rows) + source(record)


ENERGIES = {
    "energies_mnist": "MNIST, 784-512-512-10, ReLU",
    "energies_deep": "20,000 images of MNIST, ten layers of 128, ReLU",
}


def energies() -> str:
    """Nets with scaled feedback and their feed-forward twins."""
    found = {name: records.read(name) for name in ENERGIES}
    rows = [
        [
            ENERGIES[name],
            arm,
            f"{r['rate']:.0e}",
            with_spread(r, "accuracy"),
            f"{r['seconds']:.0f}",
            f"{r['ratio']:.2f}",
            f"{r['steps']:.2f}",
        ]
        for name, record in found.items()
        for arm, r in record["rows"].items()
    ]
    head = ["net", "arm", "rate", "test accuracy", "CPU s to its best", "over backprop"]
    text = table([*head, "an update over backprop"], rows)
    return text + sources(found.values())


def energies_cost() -> str:
    """Updates by equilibrium propagation, in steps of backprop."""
    found = [records.read(name) for name in ("benchmark_ep", "benchmark_ep_trained")]
    rows = [
        [
            name,
            f"{r['backprop_steps']:.1f}",
            f"{r['error']:.1e}",
            ", ".join(map(str, r["sweeps"])),
        ]
        for record in found
        for name, r in record["rows"].items()
    ]
    head = ["net: update", "backprop steps", "error", "sweeps: free, real, complex"]
    return table(head, rows) + sources(found)
