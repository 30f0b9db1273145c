"""MNIST by a net of threshold units, 784-50-10, with no derivative anywhere.

bpfree-train --config=configs/threshold_mnist.py --workdir=runs/threshold_mnist
"""

from ml_collections import ConfigDict

_SETS = {"": "mnist", "fashion_mnist": "fashion_mnist", "smoke": "digits"}
_STEPS_PER_EPOCH = 55000 // 128


def get_config(arg: str = "") -> ConfigDict:
    """The net of threshold units; arg: "fashion_mnist" or "smoke"."""
    if arg not in _SETS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are fashion_mnist, smoke, or none"
        )
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": _SETS[arg], "preprocess": "centre", "dir": ""}
    config.model = {"name": "mlp", "hidden": (50,), "activation": "sign"}
    config.batch_size = 128
    config.num_steps = 30 * _STEPS_PER_EPOCH
    config.log_every = _STEPS_PER_EPOCH
    config.checkpoint_every = 30 * _STEPS_PER_EPOCH
    config.estimator = {
        "num_samples": 32,
        "sigma": 0.3,
        "noise": "shared_gaussian",
        "pairing": "noisy",
    }
    config.schedule = {"init_value": 1.5e-3, "decay_steps": config.get_ref("num_steps")}
    config.chain = (
        ("likelihood_ratio", "estimator"),
        ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")}),
    )
    if arg == "smoke":
        config.data = {"name": "digits"}
        config.model.hidden = (8,)
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
