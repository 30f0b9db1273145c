"""The tables of `launched.py`: {table: {row: {column: run}}}."""

from __future__ import annotations

from typing import NamedTuple


class Run(NamedTuple):
    """A config of the repository, and what is changed in it.

    Attributes:
      config, arm: `--config=configs/CONFIG.py:ARM`.
      changes: each after `--config.`; the first one names the run.
      begins: the run whose parameters this one begins with.
      seeds: no more than so many, where a run is long.
    """

    config: str
    arm: str = ""
    changes: tuple[str, ...] = ()
    begins: Run | None = None
    seeds: int = 100


Row = dict[str, Run]
METHODS = {
    "": "node perturbation",
    "_dnp": "node perturbation, decorrelated",
    "_feedback": "learned feedback",
    "_dbp": "backprop, decorrelated",
}


def rows(
    text: str, config: str, net: str, *arms: str, changes: tuple[str, ...] = ()
) -> dict[str, Row]:
    """Arms of a net, each beside its twin by backprop and the last layer alone."""

    def run(arm: str) -> Run:
        return Run(config, f"{net}{arm}".removeprefix("_"), changes)

    ends = {"twin": run("_bp"), "control": run("_frozen")}
    return {f"{text}: {METHODS[arm]}": {"method": run(arm), **ends} for arm in arms}


def recurrent(text: str, cell: str, *arms: str) -> dict[str, Row]:
    """On TREC and on AG News."""
    news = ("data.name=ag_news_5k", "data.length=32")
    return {
        **rows(f"{text}, TREC", "trec", cell, *arms),
        **rows(f"{text}, AG News", "trec", cell, *arms, changes=news),
    }


def named(text: str, config: str, arm: str, net: str) -> dict[str, Row]:
    """An arm whose method has a name of its own."""
    ends = {"twin": Run(config, f"{net}_bp"), "control": Run(config, f"{net}_frozen")}
    return {text: {"method": Run(config, arm), **ends}}


LOCAL = "node perturbation, local credit"
ARCHITECTURES = {
    **recurrent("GRU", "gru", "", "_feedback"),
    **recurrent("LSTM", "lstm", "", "_feedback"),
    **recurrent("simple RNN", "rnn", "", "_dnp", "_feedback", "_dbp"),
    **named(f"GCN, Cora: {LOCAL}", "citation_graph", "cora", "cora"),
    **named(
        "GCN, Cora: the same, all losses answer for every unit",
        "citation_graph",
        "cora_total",
        "cora",
    ),
    **named(f"GCN, Citeseer: {LOCAL}", "citation_graph", "citeseer", "citeseer"),
    **named(
        "spiking net, N-MNIST (100 test images): likelihood ratio",
        "spiking",
        "nmnist",
        "nmnist",
    ),
    **named(
        "spiking net, spikes of Fashion-MNIST: likelihood ratio",
        "spiking",
        "fashion_mnist",
        "fashion_mnist",
    ),
    **rows("ViT, digits", "vit", "", "", "_dnp", "_feedback", "_dbp"),
    **rows(
        "causal transformer, characters",
        "char_transformer",
        "",
        "",
        "_dnp",
        "_feedback",
    ),
}

RESNET5 = rows("ResNet-5", "resnet5", "resnet5", "_feedback")
VGG8 = rows("VGG-8", "resnet5", "vgg8", "_feedback")


def perturbed(net: str, text: str, arm: str, change: str = ""):
    """Node perturbation on CIFAR-10."""
    (row,) = rows(text, "resnet5", net, arm).items()
    changes = (change,) if change else ()
    method = row[1]["method"]._replace(changes=changes)
    return {row[0]: {**row[1], "method": method}}


PERTURBED = {
    **perturbed("resnet5", "ResNet-5", ""),
    **perturbed("resnet5", "ResNet-5", "_dnp"),
    **perturbed("vgg8", "VGG-8, 4 samples", "_dnp", "estimator.num_samples=4"),
}

FASTER = ("schedule.init_value=3e-3",)
RESNET5_FASTER = rows(
    "ResNet-5, rate 3e-3", "resnet5", "resnet5", "_dnp", "_feedback", changes=FASTER
)

PRETRAIN = Run("finetune", "pretrain", seeds=1)
FINE_TUNING = {
    text: {
        "readout": Run("finetune", "frozen", begins=PRETRAIN),
        "backprop": Run("finetune", f"{moves}_bp", begins=PRETRAIN),
        "node perturbation": Run("finetune", moves, begins=PRETRAIN),
        "learned feedback": Run("finetune", f"{moves}_feedback", begins=PRETRAIN),
    }
    for moves, text in {
        "all": "all layers",
        "last": "last block",
        "adapters": "branches of rank 8",
    }.items()
}

LOCAL_MODULES = {
    text: {
        "readout": Run("local_modules", "frozen"),
        "backprop": Run("local_modules", "bp"),
        "node perturbation": Run("local_modules", where),
        "learned feedback": Run("local_modules", f"{where}_feedback"),
    }
    for where, text in {"all": "at all layers", "ends": "at the ends of blocks"}.items()
}

DIGITS = {
    text: {"accuracy": Run("digits", arm)}
    for arm, text in {
        "": "likelihood ratio, clean pairing",
        "np": "node perturbation",
        "bp": "backprop, the control",
    }.items()
}

IMAGES = {
    text: {"MNIST": Run("mnist", arm), "Fashion-MNIST": Run("fashion_mnist", arm)}
    for arm, text in {
        "": "likelihood ratio, clean pairing, sigma 0.05",
        "noisy": "likelihood ratio, noisy pairing, sigma 0.3",
        "bp": "backprop, the control",
    }.items()
}

THRESHOLDS = {
    "MNIST": {"accuracy": Run("threshold_mnist")},
    "Fashion-MNIST": {"accuracy": Run("threshold_mnist", "fashion_mnist")},
}

CONVNET = {
    "node perturbation": {"accuracy": Run("cifar10_convnet")},
    "backprop": {"accuracy": Run("cifar10_convnet", "bp")},
}

ONE_EPOCH = ("num_steps=2750",)
ENERGIES_PUBLISHED = {
    "holomorphic, 10 epochs": {"accuracy": Run("ep_mnist", "holomorphic")},
    "holomorphic, noise of 0.04, 5 epochs": {"accuracy": Run("ep_mnist", "noisy")},
    "on-line oscillation, the same noise, 5 epochs": {
        "accuracy": Run("ep_mnist", "noisy_online")
    },
    "one-sided, beta = 0.1, the same noise, 1 epoch": {
        "accuracy": Run("ep_mnist", "noisy_classic", ONE_EPOCH, seeds=1)
    },
}

DANP = {"DANP, MNIST, 20 epochs": {"accuracy": Run("danp_mnist")}}

TABLES: dict[str, dict[str, Row]] = {
    "digits": DIGITS,
    "architectures": ARCHITECTURES,
    "resnet5": RESNET5,
    "vgg8": VGG8,
    "perturbed": PERTURBED,
    "resnet5_faster": RESNET5_FASTER,
    "fine_tuning": FINE_TUNING,
    "local_modules": LOCAL_MODULES,
    "images": IMAGES,
    "thresholds": THRESHOLDS,
    "convnet": CONVNET,
    "energies_published": ENERGIES_PUBLISHED,
    "danp": DANP,
}
