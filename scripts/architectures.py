"""Nets other than MLPs by bpfree, their twins by backprop, and the last layer alone.

    BPFREE_DATA_DIR=... python scripts/architectures.py --folder=runs/architectures
        [--only=trec,vit] [--results=results/architectures.json]

Every run is `bpfree-train` with a config of the repository, in a directory of its own
inside the folder: what is finished there is not run again, so that the script may be
stopped and called again. The result file has what is finished so far.
"""

import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import records
from absl import app, flags

from bpfree.training import metrics

FOLDER = flags.DEFINE_string("folder", "runs/architectures", "where the runs go")
ONLY = flags.DEFINE_list("only", [], "rows whose configs begin so; none: all")
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each config")
RESULTS = flags.DEFINE_string("results", "", "where to write the table, if anywhere")

_ARMS = {
    "": "node perturbation",
    "_dnp": "the same, decorrelated",
    "_feedback": "learned feedback",
}
AG_NEWS = ("data.name=ag_news_5k", "data.length=32")


class Net(NamedTuple):
    """A net and its data: arms of one config, and what is changed in it."""

    text: str
    config: str
    arms: dict[str, str]
    twin: str
    control: str
    changes: tuple[str, ...] = ()


def recurrent(cell: str, text: str, *arms: str) -> tuple[Net, Net]:
    """On TREC and on AG News."""
    made = {_ARMS[arm]: f"{cell}{arm}" for arm in arms}
    ends = (f"{cell}_bp", f"{cell}_frozen")
    return (
        Net(f"{text}, TREC", "trec", made, *ends),
        Net(f"{text}, AG News", "trec", made, *ends, AG_NEWS),
    )


LOCAL = "node perturbation, local credit"
NETS = (
    *recurrent("gru", "GRU", "", "_feedback"),
    *recurrent("lstm", "LSTM", "", "_feedback"),
    *recurrent("rnn", "simple RNN", "", "_dnp", "_feedback"),
    Net(
        "GCN, Cora",
        "citation_graph",
        {LOCAL: "cora", "the same, all losses answer for every unit": "cora_total"},
        "cora_bp",
        "cora_frozen",
    ),
    Net(
        "GCN, Citeseer",
        "citation_graph",
        {LOCAL: "citeseer"},
        "citeseer_bp",
        "citeseer_frozen",
    ),
    Net(
        "spiking net, N-MNIST (100 test images)",
        "spiking",
        {"likelihood ratio": "nmnist"},
        "nmnist_bp",
        "nmnist_frozen",
    ),
    Net(
        "spiking net, spikes of Fashion-MNIST",
        "spiking",
        {"likelihood ratio": "fashion_mnist"},
        "fashion_mnist_bp",
        "fashion_mnist_frozen",
    ),
    Net(
        "ResNet-5, CIFAR-10, 2,000 steps",
        "resnet5",
        {_ARMS[arm]: f"resnet5{arm}" for arm in _ARMS},
        "resnet5_bp",
        "resnet5_frozen",
    ),
    Net(
        "VGG-8, CIFAR-10, 2,000 steps",
        "resnet5",
        {_ARMS[arm]: f"vgg8{arm}" for arm in ("_dnp", "_feedback")},
        "vgg8_bp",
        "vgg8_frozen",
    ),
    Net(
        "ViT, digits",
        "vit",
        {_ARMS[arm]: arm.removeprefix("_") for arm in _ARMS},
        "bp",
        "frozen",
    ),
    Net(
        "causal transformer, characters",
        "char_transformer",
        {_ARMS[arm]: arm.removeprefix("_") for arm in _ARMS},
        "bp",
        "frozen",
    ),
)


def accuracies(net: Net, arm: str) -> list[float]:
    """Test accuracy of every seed; runs what is not finished yet."""
    return [run(net, arm, seed) for seed in range(SEEDS.value)]


def run(net: Net, arm: str, seed: int) -> float:
    name = "_".join([net.config, arm or "default", *net.changes[:1], str(seed)])
    workdir = Path(FOLDER.value) / name.replace("=", "_")
    config = Path(__file__).parent.parent / "configs" / f"{net.config}.py"
    command = ["bpfree-train", f"--config={config}{f':{arm}' if arm else ''}"]
    command += [f"--config.{change}" for change in net.changes]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    if (found := finished(workdir)) is None:
        subprocess.run(command, check=True)
        found = finished(workdir)
    assert found is not None
    return found


def finished(workdir: Path) -> float | None:
    """Test accuracy of a run that has ended, from its last line."""
    lines = metrics.read(workdir) if metrics.path_of(workdir).exists() else []
    ended = [line for line in lines if line["kind"] == "summary"]
    return ended[-1]["test/accuracy"] if ended else None


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    rows = {}
    for net in NETS:
        if ONLY.value and not any(net.config.startswith(o) for o in ONLY.value):
            continue
        twin, control = (np.array(accuracies(net, a)) for a in (net.twin, net.control))
        for method, arm in net.arms.items():
            mine = np.array(accuracies(net, arm))
            row = {
                "config": f"{net.config}.py:{arm}".removesuffix(":"),
                "changes": " ".join(f"--config.{change}" for change in net.changes),
                "gap": float((mine - control).mean() / (twin - control).mean()),
            }
            for name, found in {"accuracy": mine, "twin": twin, "last": control}.items():
                row |= records.spread(name, found)
            rows[f"{net.text}: {method}"] = row
            print(net.text, method, row, flush=True)
            if RESULTS.value:
                records.write(RESULTS.value, list(range(SEEDS.value)), rows)


if __name__ == "__main__":
    app.run(main)
