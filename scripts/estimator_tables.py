"""Tables that compare estimators on one net, from `results/`; see `scripts/tables.py`."""

import records
from cells import CALLS, call, samples_for, share, source, table, with_spread


def alignment() -> str:
    record = records.read("compare_estimators")
    rows = [
        [
            call(name),
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
        [call(n), str(r["samples"]), f"{r['cost']:.1f}", with_spread(r, "accuracy")]
        for n, r in record["rows"].items()
        if n in CALLS
    ]
    head = ["estimator", "samples", "cost", "test accuracy"]
    return table(head, rows) + source(record)


def zeroth_order(name: str = "zeroth_order") -> str:
    """Test accuracies of `scripts/zeroth_order.py`."""
    record = records.read(name)
    rows = [
        [n, f"{r['cost']:.1f}", f"{r['rate']:.2g}", with_spread(r, "accuracy")]
        for n, r in record["rows"].items()
    ]
    head = ["estimator: optimiser or noise", "cost", "rate", "test accuracy"]
    return table(head, rows) + source(record)


def allocation() -> str:
    return zeroth_order("allocation")


def learned_feedback() -> str:
    record = records.read("learned_feedback")
    rows = [
        [
            call(name),
            str(r["samples"]),
            f"{r['cost']:.1f}",
            with_spread(r, "mnist"),
            with_spread(r, "fashion_mnist"),
        ]
        for name, r in record["rows"].items()
    ]
    head = ["estimator", "samples", "cost", "MNIST", "Fashion-MNIST"]
    return table(head, rows) + source(record)


def parallel_feedback() -> str:
    return _gaps("parallel_feedback")


def parallel_thresholds() -> str:
    return _gaps("parallel_thresholds")


def _gaps(name: str) -> str:
    """Accuracies and gaps of `scripts/parallel_feedback.py`."""
    record = records.read(name)
    rows = [
        [
            name,
            str(r["samples"]),
            f"{r['cost']:.1f}",
            with_spread(r, "accuracy"),
            f"{r['gap']:.2f}" if "gap" in r else "",
        ]
        for name, r in record["rows"].items()
    ]
    head = ["feedback", "samples", "cost", "test accuracy", "gap"]
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
        if name in trained["rows"] and name in CALLS
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
    "learned feedback (responses)": 'learned_feedback(teacher="responses")',
}


def first_call() -> str:
    return _programs("first_call")


def first_call_resnet50() -> str:
    return _programs("first_call_resnet50")


def _programs(name: str) -> str:
    """Sizes of programs, and seconds where they were read, of `scripts/first_call.py`."""
    record = records.read(name)
    rows = sorted(record["rows"].items(), key=lambda row: row[1]["operations"])
    lines = [
        [f"`{PROGRAMS[name]}`", f"{row['operations']:,}", f"{row['over_backprop']:.2f}"]
        for name, row in rows
    ]
    head = ["estimator", "operations", "over backprop"]
    if all("seconds_over" in row for _, row in rows):
        head += ["time to trace and compile, over backprop", "peak memory, MiB"]
        for line, (_, row) in zip(lines, rows, strict=True):
            line += [f"{row['seconds_over']:.1f} +- {row['seconds_over_std']:.1f}"]
            line += [f"{row['peak_mebibytes']:.0f}"]
    return table(head, lines) + source(record)


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
