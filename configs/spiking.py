"""Spiking nets with hard thresholds, by likelihood ratio: no surrogate derivative.

    bpfree-train --config=configs/spiking.py --workdir=runs/spiking

Leaky integrate-and-fire units, 128 of them, between spike trains and a dense layer.
Likelihood ratio with noise on the input currents at every step: the gradient of the
smoothed loss, which a step function has.

Data: `spiking.py:nmnist` (the default; 1,000 training and 100 test recordings of an event
camera, 17 x 17 pixels after pooling, 30 bins of 10 ms) and `spiking.py:fashion_mnist`
(pixels as regular spike trains of 8 steps). With each of them the arms:
`spiking.py:nmnist_bp` (backprop with a surrogate derivative, the twin),
`spiking.py:nmnist_frozen` (backprop on the last layer alone, the control); and
`spiking.py:smoke`, one step on tiny shapes of another set, the digits. Seeds:
`--config.seed=1`.

The run reads the folder `nmnist_small` (or `fashion_mnist`) of the directory that
BPFREE_DATA_DIR names.

N-MNIST, test accuracy (100 recordings), seeds 0 to 2, JAX 0.10.2, one CPU core beside
other jobs: .78, .78, .79 (100 to 145 s), bp .87, .86, .86 (20 s), frozen .72, .69, .74
(10 s). Nothing was tuned, and Fashion-MNIST has not been measured.
"""

from ml_collections import ConfigDict

_DATA = {
    "nmnist": {"name": "nmnist_small", "dir": "", "pool": 2, "steps": 30},
    "fashion_mnist": {"name": "fashion_mnist", "dir": ""},
}
_MODELS = {
    "nmnist": {"coding": "none"},
    "fashion_mnist": {"coding": "rate", "steps": 8},
}
_STEPS = {"nmnist": 1500, "fashion_mnist": 4000}
_ARMS = {
    "": (
        "likelihood_ratio",
        {
            "num_samples": 32,
            "sigma": 0.3,
            "noise": "shared_gaussian",
            "nodes": ("Dense_0",),
        },
    ),
    "bp": ("backprop", {}),
    "frozen": ("backprop", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    """Spikes by likelihood ratio; arg: a set, with an arm behind it, or "smoke"."""
    data = "fashion_mnist" if arg.startswith("fashion_mnist") else "nmnist"
    arm = "" if arg in ("", "smoke", data) else arg.removeprefix(data + "_")
    if arm not in _ARMS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are nmnist, fashion_mnist, each "
            "alone or with _bp or _frozen behind it, and smoke"
        )
    name, kwargs = _ARMS[arm]
    config = ConfigDict()
    config.seed = 0
    config.data = _DATA[data]
    config.model = {"name": "spiking", "hidden": (128,), **_MODELS[data]}
    config.model.surrogate = 5.0 if arm == "bp" else 0.0
    config.mesh = ""
    config.batch_size = 64
    config.num_steps = _STEPS[data]
    config.log_every = config.num_steps // 10
    config.checkpoint_every = config.num_steps // 2
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs
    config.schedule = {"init_value": 3e-3, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    if arm == "frozen":
        config.frozen = ("Dense_0",)
    config.chain = ((name, "estimator"), adam)
    if arg == "smoke":
        config.data = {"name": "digits"}
        config.model = {"name": "spiking", "hidden": (4,), "steps": 3}
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
