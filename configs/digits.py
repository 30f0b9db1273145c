"""TODO"""

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
    config.batch_size = 128
    config.num_steps = 8000
    config.log_every = 200
    config.checkpoint_every = 2000
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
