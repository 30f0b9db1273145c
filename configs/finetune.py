"""Fine-tuning without backpropagation: from MNIST to Fashion-MNIST, MLP 784-256-256-10.

    bpfree-train --config=configs/finetune.py:pretrain --workdir=runs/pretrained
    bpfree-train --config=configs/finetune.py --workdir=runs/finetuned

The first run trains on MNIST by backprop; the others begin from its hidden layers and a
readout of their own, for 1,000 steps on Fashion-MNIST. What moves: `finetune.py:all` (the
default), `finetune.py:last` (the second hidden layer and the readout) or
`finetune.py:adapters` (the readout and low-rank branches, rank 8, beside hidden layers
that are fixed). With each of them the arms: nothing (node perturbation, layer by layer),
`_feedback` (learned feedback), `_bp` (backprop, the twin). `finetune.py:frozen` trains
the readout alone, by backprop: the control. `finetune.py:smoke`: one step of a small net
on made-up data, from random weights.

Test accuracy, three seeds of each arm: `results/fine_tuning.json`, written by
`python scripts/launched.py --table=fine_tuning`; 2 to 46 s each on a CPU
beside other jobs, from one first run (.980 on MNIST).

--config.pretrained.workdir=... names another run to begin from. Seeds: --config.seed=1.
"""

from ml_collections import ConfigDict

_FROZEN = {
    "all": (),
    "last": ("Dense_0",),
    "adapters": ("Dense_0", "Dense_1"),
    "frozen": ("Dense_0", "Dense_1"),
}
_ADAPTERS = ("down_0", "up_0", "down_1", "up_1")
_RATES = {"all": 3e-3, "last": 1e-2, "adapters": 1e-2, "frozen": 1e-1}
_SAMPLES = {"all": 64, "last": 256, "adapters": 64}
_ARMS = {
    "": ("node_perturbation", {"sigma": 1e-3, "layerwise": True}),
    "feedback": ("learned_feedback", {}),
    "bp": ("backprop", {}),
}
_ALONE = {"pretrain": "all_bp", "frozen": "frozen_bp", "smoke": "adapters", "": "all"}


def get_config(arg: str = "") -> ConfigDict:
    """arg: what moves, with an arm behind it; "frozen", "pretrain" or "smoke"."""
    moves, _, arm = _ALONE.get(arg, arg).partition("_")
    if (
        moves not in _FROZEN
        or arm not in _ARMS
        or (moves == "frozen") != (arg == "frozen")
    ):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are all, last, adapters, each alone "
            "or with _feedback or _bp behind it, and frozen, pretrain, smoke"
        )
    name, kwargs = _ARMS[arm]
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "fashion_mnist", "preprocess": "centre", "dir": ""}
    config.model = {"name": "mlp", "hidden": (256, 256)}
    config.model.adapters = 8 if moves == "adapters" else 0
    config.pretrained = {
        "workdir": "runs/pretrained",
        "fresh": ("Dense_2", *(_ADAPTERS if moves == "adapters" else ())),
    }
    config.frozen = _FROZEN[moves]
    config.mesh = ""
    config.batch_size = 64
    config.num_steps = 1000
    config.log_every = 100
    config.checkpoint_every = 500
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = dict(kwargs)
    if not arm:
        config.estimator.num_samples = _SAMPLES[moves]
    config.schedule = {
        "init_value": _RATES[moves],
        "decay_steps": config.get_ref("num_steps"),
    }
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    config.chain = ((name, "estimator"), adam)
    if arg == "pretrain":
        del config.pretrained
        config.data.name = "mnist"
        config.num_steps = 3000
        config.schedule.init_value = 1e-3
    if arg == "smoke":
        del config.pretrained
        config.frozen = ("Dense_0",)
        config.data.dir = "made-up"
        config.model.update({"hidden": (8, 8), "adapters": 2})
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
