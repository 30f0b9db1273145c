"""CIFAR-10 by equilibrium propagation: a convolutional Hopfield network, N = 2.

    bpfree-train --config=configs/ep_cifar10.py --workdir=runs/ep_cifar10

"VGG4" of Laborieux & Zenke 2022 (arXiv:2209.00530, Table 2) at a quarter of its width:
convolutions 32-64-128-128 with softmax pooling, dSiLU, centred nudging |beta| = 1,
momentum 0.9, decoupled decay, a learning rate for each layer, cosine annealing (here at
every step). Not theirs: the adaptive relaxation (250 and 60 plain sweeps), standardised
pixels in place of 1.5 standard deviations, and no flips and crops.

Reads the folder `cifar10_jpeg` of the directory that BPFREE_DATA_DIR names (a JPEG copy;
`--config.data.name=cifar10` for the original files).

Variants: `ep_cifar10.py:wide` (their width, 128-256-512-512, made for an accelerator; the
original ends at 88.45 % after 90 epochs with flips and crops), `ep_cifar10.py:published`
(their width and their sweeps), `ep_cifar10.py:few` (steps for scripts/ep_alignment.py: 4
times 10,000 images) and `ep_cifar10.py:smoke`, one step of a small net on made-up data.
"""

from ml_collections import ConfigDict

_RATES = {
    "layer_1": 0.25,
    "layer_2": 0.15,
    "layer_3": 0.1,
    "layer_4": 0.08,
    "readout": 0.05,
}
_PUBLISHED = {"free": 250, "nudged": 60, "ordering": "jacobi", "tolerance": None}
_STEPS_PER_EPOCH = 45000 // 128


def get_config(arg: str = "") -> ConfigDict:
    """The convolutional network by EP; arg: one of the variants above."""
    if arg not in ("", "wide", "published", "few", "smoke"):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are wide, published, few, smoke, or "
            "none at all"
        )
    wide = arg in ("wide", "published")
    channels = (128, 256, 512, 512) if wide else (32, 64, 128, 128)
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "cifar10_jpeg", "preprocess": "standardise", "dir": ""}
    config.model = {
        "name": "hopfield",
        "channels": channels,
        "hidden": (),
        "activation": "dsilu",
        "pool": "softmax",
    }
    config.mesh = ""
    config.batch_size = 128
    config.num_steps = 90 * _STEPS_PER_EPOCH
    config.log_every = _STEPS_PER_EPOCH
    config.checkpoint_every = _STEPS_PER_EPOCH
    config.estimator = {
        "nudging": ("equilibrium.centred", {"beta": 1.0}),
        "relaxation": (
            "equilibrium.Relaxation",
            _PUBLISHED if arg == "published" else {"factor": 1.0},
        ),
    }
    if arg == "few":
        config.num_steps = 4 * (10_000 // 128)
    if arg == "smoke":
        config.data.dir = "made-up"
        config.model.channels = (4,) * 4
        config.batch_size = 8
        config.num_steps = config.log_every = config.checkpoint_every = 1
    config.annealing = {"init_value": 1.0, "decay_steps": config.get_ref("num_steps")}
    config.chain = (
        ("equilibrium_propagation", "estimator"),
        ("trace", {"decay": 0.9}),
        ("add_decayed_weights", {"weight_decay": 2e-3}),
        ("scale_by_schedule", {"step_size_fn": ("cosine_decay_schedule", "annealing")}),
        (
            "partition",
            {
                "transforms": {
                    name: ("scale_by_learning_rate", {"learning_rate": rate})
                    for name, rate in _RATES.items()
                },
                "param_labels": {name: name for name in _RATES},
            },
        ),
    )
    return config.lock()
