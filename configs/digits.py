"""Handwritten digits (8 x 8) by likelihood ratio: an MLP 64-128-128-10 without backprop.

    bpfree-train --config=configs/digits.py --workdir=runs/digits

Variants: `digits.py:np` (node perturbation), `digits.py:bp` (backprop, the control) and
`digits.py:smoke` (one step on tiny shapes, seconds). Seeds: `--config.seed=1`.

Test accuracy (355 images) of seeds 0 to 4, and seconds of training:
`python scripts/launched.py --table=digits --seeds=5`, results/digits.json. One image
is worth .0028. Step size, batch, augmentation and pairing were chosen for likelihood
ratio on the validation images ("clean" .987 against "noisy" .980, two seeds each); sigma
is the default. np and bp take that recipe as it is.
"""

from ml_collections import ConfigDict

_ESTIMATORS = {
    "": (
        "likelihood_ratio",
        {"num_samples": 8, "sigma": 0.05, "pairing": "clean", "noise": "shared_gaussian"},
    ),
    "np": ("node_perturbation", {"num_samples": 8, "sigma": 0.01}),
    "bp": ("backprop", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    """Digits by likelihood ratio; arg: "np", "bp" or "smoke"."""
    if arg not in (*_ESTIMATORS, "smoke"):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are np, bp, smoke, or none at all"
        )
    name, kwargs = _ESTIMATORS.get(arg, _ESTIMATORS[""])
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "digits", "shift": 0.5, "pixel_noise": 0.1}
    config.model = {"name": "mlp", "hidden": (128, 128), "activation": "relu"}
    config.mesh = ""
    config.batch_size = 128
    config.num_steps = 8000
    config.log_every = 200
    config.checkpoint_every = 2000
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs
    config.schedule = {"init_value": 5e-3, "decay_steps": config.get_ref("num_steps")}
    config.chain = (
        (name, "estimator"),
        ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")}),
    )
    if arg == "smoke":
        config.model.hidden = (8,)
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()


def get_sweep() -> list[dict]:
    """Sixteen seeds; `bpfree-sweep --config=configs/digits.py --workdir=runs/sweep`."""
    return [{"seed": seed} for seed in range(16)]


def get_search() -> dict:
    """Ranges for `bpfree-sweep --search=tpe`; the default settings lie inside."""
    return {
        "schedule.init_value": ("log", 1e-4, 1e-1),
        "estimator.sigma": ("log", 1e-3, 1.0),
    }
