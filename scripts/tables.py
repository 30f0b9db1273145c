"""Write the tables and figures of README and documentation from `results/*.json`.

    python scripts/tables.py

A page has, in place of each, the comment `<!-- results: NAME -->`, the text that the
function of that name in this file makes, and `<!-- end -->`. A test asserts that every
page is as this script leaves it.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import records

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/choose.md", "docs/benchmarks/*.md")
MARKED = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.S)

# The calls that the names of scripts/arms.py stand for.
CALLS = {
    "backprop": "backprop()",
    "np": "node_perturbation()",
    "np gaussian": 'node_perturbation(noise="gaussian")',
    "np antithetic": "node_perturbation(antithetic=True)",
    "np layerwise": "node_perturbation(layerwise=True)",
    "inp": "iterative_node_perturbation()",
    "anp": "activity_node_perturbation()",
    "lr noisy": "likelihood_ratio(sigma=0.01)",
    "lr noisy sigma 0.3": "likelihood_ratio(sigma=0.3)",
    "approximated lr": "approximated_likelihood_ratio()",
    "wp": "weight_perturbation()",
    "wp rank 1": "weight_perturbation(rank=1)",
    "forward gradient nodes": "forward_gradient()",
    "forward gradient weights": 'forward_gradient(tangents="weights")',
    "feedback responses": "learned_feedback()",
    "feedback losses": 'learned_feedback(teacher="losses", antithetic=True)',
    "feedback direct losses": 'learned_feedback(predictor=direct(), teacher="losses")',
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def share(value: float, digits: int = 4) -> str:
    """A number of 0 .. 1 without its leading zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if value < 1 else text


def with_spread(row: dict, key: str, digits: int = 4) -> str:
    return f"{share(row[key], digits)} +- {share(row[key + '_std'], digits)}"


def source(record: dict) -> str:
    """The command, under its table."""
    where = f"{record['device']['platform'].upper()}, JAX {record['versions']['jax']}"
    if record["seeds"]:
        where = f"seeds {record['seeds'][0]} to {record['seeds'][-1]}; {where}"
    return f"\n`{record['command']}` ({where})\n"


def call(name: str) -> str:
    return f"`{CALLS[name]}`"


def samples_for(row: dict) -> str:
    """Samples for a cosine of 0.9, two digits; some estimates never come so near."""
    if row["limit"] < 0.9:
        return "never"
    return f"{max(1.0, float(format(row['needed'], '.2g'))):,.0f}"


def alignment() -> str:
    record = records.read("compare_estimators")
    rows = [
        [
            f"`{name}`",
            str(r["samples"]),
            f"{r['cosine']:.3f} +- {r['cosine_std']:.3f}",
            f"{r['slope']:.2f}",
            samples_for(r),
        ]
        for name, r in record["rows"].items()
        if name in CALLS
    ]
    head = ["estimator", "samples", "cosine", "slope", "samples for 0.9"]
    return table(head, rows) + source(record)


def training() -> str:
    record = records.read("compare_training")
    rows = [
        [f"`{n}`", str(r["samples"]), f"{r['cost']:.1f}", with_spread(r, "accuracy")]
        for n, r in record["rows"].items()
    ]
    head = ["estimator", "samples", "cost", "test accuracy"]
    return table(head, rows) + source(record)


def learned_feedback() -> str:
    record = records.read("learned_feedback")
    rows = [
        [
            call(name),
            str(r["passes"]),
            with_spread(r, "mnist"),
            with_spread(r, "fashion_mnist"),
        ]
        for name, r in record["rows"].items()
    ]
    head = ["estimator", "forward passes", "MNIST", "Fashion-MNIST"]
    return table(head, rows) + source(record)


def unbiased_feedback() -> str:
    """Test accuracies of `scripts/unbiased_feedback.py`."""
    record = records.read("unbiased_feedback")
    rows = [
        [name, str(r["samples"]), f"{r['rate']:g}", with_spread(r, "accuracy")]
        for name, r in record["rows"].items()
        if "accuracy" in r
    ]
    head = ["net: estimate", "noisy passes", "rate", "test accuracy"]
    return table(head, rows) + source(record)


def unbiased_along() -> str:
    """What its estimates are during the runs of the first arm."""
    names = ("cosine", "slope", "variance")
    rows = [
        [text, *(f"{r[n]:.3f} +- {r[n + '_std']:.3f}" for n in names)]
        for text, r in records.read("unbiased_feedback")["rows"].items()
        if "cosine" in r
    ]
    return table(["net, steps before: estimate", *names], rows)


def recommend() -> str:
    record = records.read("recommend")
    rows = [
        [
            name,
            f"`{r['recommended']}`, {r['rate']:.2g}",
            *(with_spread(r, f"{arm}_loss") for arm in ("followed", "default")),
            *(with_spread(r, f"{arm}_accuracy") for arm in ("followed", "default")),
        ]
        for name, r in record["rows"].items()
    ]
    head = ["net", "recommended, rate", "loss", "default's", "accuracy", "default's"]
    return table(head, rows) + source(record)


MOVES = {
    "untouched": ("-", "nothing"),
    "bp": ("`backprop()`", "all"),
    "scratch": ("`backprop()`", "all, from random weights"),
    "feedback": ("`learned_feedback()`", "all"),
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
        gap = f"{(r[metric] - start) / (end - start):.2f}"
        if arm == "untouched":
            return [*MOVES[arm], "", "", "", "", f"{r[metric]:.3f}", ""]
        crossed = "all" if r["carried"] is None else str(r["carried"])
        found = f"{r[metric]:.3f} +- {r[metric + '_std']:.3f}"
        run = [str(r["steps"]), f"{r['rate']:g}", crossed, f"{r['memory']:.0f}"]
        return [*MOVES[arm], *run, found, gap]

    head = ["estimator", "what moves", "steps", "rate", "carried", "MB", title, "gap"]
    return table(head, map(line, (arm for arm in MOVES if arm in rows))) + source(record)


def choice() -> str:
    """The estimators of the decision page: one gradient, and a training at equal cost."""
    one, trained = records.read("compare_estimators"), records.read("compare_training")
    rows = [
        [
            call(name),
            f"{r['cosine']:.2f}",
            samples_for(r),
            share(trained["rows"][name]["accuracy"], 3),
        ]
        for name, r in one["rows"].items()
        if name in trained["rows"]
    ]
    rows.sort(key=lambda row: -float(row[-1]))
    head = [
        "estimator",
        "cosine of one estimate",
        "samples for a cosine of 0.9",
        "test accuracy",
    ]
    return table(head, rows) + source(one) + source(trained)


# The calls that the names of scripts/first_call.py stand for.
PROGRAMS = {
    "backprop": "backprop()",
    "likelihood ratio (clean)": 'likelihood_ratio(pairing="clean")',
    "likelihood ratio (noisy)": "likelihood_ratio()",
    "node perturbation": "node_perturbation()",
    "weight perturbation": "weight_perturbation()",
    "forward gradient": "forward_gradient()",
    "layer-wise": "node_perturbation(layerwise=True)",
    "weight perturbation (rank 1)": "weight_perturbation(rank=1)",
    "learned feedback": "learned_feedback()",
}


def first_call() -> str:
    record = records.read("first_call")
    rows = sorted(record["rows"].items(), key=lambda row: row[1]["operations"])
    lines = [
        [f"`{PROGRAMS[name]}`", f"{row['operations']:,}", f"{row['over_backprop']:.2f}"]
        for name, row in rows
    ]
    return table(["estimator", "operations", "over backprop"], lines) + source(record)


COSTS = {
    "np": "node_perturbation()",
    "np antithetic": "node_perturbation(antithetic=True)",
    "lr clean shared": 'likelihood_ratio(pairing="clean", noise="shared_gaussian")',
    "lr clean": 'likelihood_ratio(pairing="clean")',
    "lr noisy shared": 'likelihood_ratio(noise="shared_gaussian")',
    "lr noisy": "likelihood_ratio()",
    "wp": "weight_perturbation()",
    "wp rank 1": "weight_perturbation(rank=1)",
    "fg nodes": "forward_gradient()",
    "fg weights": 'forward_gradient(tangents="weights")',
}


def cost() -> str:
    record = records.read("benchmark")
    rows = [
        [
            f"`{call}`",
            f"{row['backprop_steps']:.1f}",
            f"{row['of_inference']:.2f}",
            f"{row['of_floor']:.2f}",
            f"{row['scratch_mib']:.1f}",
        ]
        for name, call in COSTS.items()
        for row in [record["rows"][f"mlp: {name}, 64"]]
    ]
    head = [
        "estimator, 64 samples",
        "backprop steps",
        "a sample, of inference",
        "of its FLOP floor",
        "scratch, MiB",
    ]
    return table(head, rows) + source(record)


def architectures() -> str:
    record = records.read("architectures")
    rows = [
        [
            name,
            f"`{r['config']}`" + (" and flags" if r["changes"] else ""),
            *(with_spread(r, k, 3) for k in ("accuracy", "twin", "last")),
            f"{r['gap']:.2f}" if r["gap"] >= 0.7 else f"**{r['gap']:.2f}**",
        ]
        for name, r in record["rows"].items()
    ]
    head = ["net, data: method", "config", "test accuracy", "twin", "control", "gap"]
    return table(head, rows) + source(record)


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
    return text + "".join(source(record) for record in found.values())


def digits() -> str:
    record = records.read("digits")
    rows = [
        [
            name,
            f"`bpfree-train --config={r['config']} --config.seed=S`",
            f"{share(_mean(r['accuracy']))} +- {share(_deviation(r['accuracy']))}",
        ]
        for name, r in record["rows"].items()
    ]
    return table(["method", "command", "test accuracy, seeds 0 to 4"], rows)


def first_run() -> str:
    """What README says of its first command."""
    record = records.read("digits")
    row = next(iter(record["rows"].values()))
    values, seconds = row["accuracy"], row["seconds"]
    lines = [
        f"The first command ends with `test accuracy {values[0]:.4f}`, and leaves",
        "metrics (JSON lines), a checkpoint and `learning_curve.png` in `runs/digits`.",
        "It trains an MLP 64-128-128-10, and no error signal crosses a layer. Over seeds",
        f"{record['seeds'][0]} to {record['seeds'][-1]} (`bpfree-train "
        f"--config={row['config']} --config.seed=S`) the test accuracy",
        f"is **{100 * _mean(values):.1f} %** (standard deviation "
        f"{100 * _deviation(values):.2f}), in {seconds[0]} to {seconds[-1]} s on two",
        "CPU cores, idle or shared.",
    ]
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: list[float]) -> float:
    mean = _mean(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


TEXTS: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        alignment,
        training,
        learned_feedback,
        unbiased_feedback,
        unbiased_along,
        recommend,
        pretrained_characters,
        pretrained_characters_longer,
        pretrained_pronunciation,
        pretrained_pronunciation_longer,
        choice,
        first_call,
        cost,
        robustness,
        architectures,
        energies,
        digits,
        first_run,
    )
}


def filled(text: str) -> str:
    """A page with the text of every mark made anew; KeyError for an unknown name."""
    return MARKED.sub(lambda m: m[1] + TEXTS[m[2]]() + m[3], text)


def pages() -> list[Path]:
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def main() -> None:
    for path in pages():
        text = path.read_text()
        if filled(text) != text:
            path.write_text(filled(text))
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
