"""Fashion-MNIST by an MLP 784-512-512-10 with decorrelated layer inputs.

    bpfree-train --config=configs/decorrelated_mlp.py --workdir=runs/decorrelated_mlp

One file for the family: the estimator makes the gradient, `decorrelate` stands around
Adam. Variants: `decorrelated_mlp.py:dbp` (the papers' rule behind backprop), `:dnp`,
`:dinp`, `:danp` (behind node, iterative node and activity node perturbation), `:dlr`
(behind likelihood ratio), `:bp` (no decorrelation: the control) and `:smoke`, one step of
a small net on made-up data. With no argument: backprop and the default rule.

Controls belong to every comparison: `--config.data.preprocess=none` (or `zca`) changes
the inputs, `--config.decorrelation.layers=Dense_0/kernel` decorrelates one layer only.
Tuned for nothing, and no test accuracy has been measured with this file.
"""

from ml_collections import ConfigDict

_ESTIMATORS = {
    "": ("backprop", {}),
    "bp": ("backprop", {}),
    "dbp": ("backprop", {}),
    "dnp": ("node_perturbation", {"num_samples": 16, "sigma": 0.01}),
    "dinp": ("iterative_node_perturbation", {"num_samples": 16, "sigma": 0.01}),
    "danp": ("activity_node_perturbation", {"num_samples": 16, "sigma": 0.01}),
    "dlr": (
        "likelihood_ratio",
        {"num_samples": 16, "sigma": 0.05, "pairing": "clean"},
    ),
}
_STEPS_PER_EPOCH = 55000 // 128


def get_config(arg: str = "") -> ConfigDict:
    """The MLP; arg: "dbp", "dnp", "dinp", "danp", "dlr", "bp" or "smoke"."""
    if arg not in (*_ESTIMATORS, "smoke"):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are dbp, dnp, dinp, danp, dlr, bp, "
            "smoke, or none at all"
        )
    name, kwargs = _ESTIMATORS.get(arg, ("activity_node_perturbation", {}))
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "fashion_mnist", "preprocess": "standardise", "dir": ""}
    config.model = {"name": "mlp", "hidden": (512, 512), "activation": "relu"}
    config.mesh = ""
    config.batch_size = 128
    config.num_steps = 10 * _STEPS_PER_EPOCH
    config.log_every = _STEPS_PER_EPOCH
    config.checkpoint_every = _STEPS_PER_EPOCH
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs
    config.inner = {"learning_rate": 1e-3}
    if arg == "bp":
        config.chain = ((name, "estimator"), ("adam", "inner"))
        return config.lock()
    kappa = 0.01 if arg == "dbp" else 0.0
    papers = ("decorrelation.dbp", {"kappa": kappa})
    config.decorrelation = {
        "inner": ("adam", "inner"),
        "rule": "foof" if arg in ("", "smoke") else papers,
        "every": 10,
        "layers": None,
    }
    config.chain = ((name, "estimator"), ("decorrelate", "decorrelation"))
    if arg == "smoke":
        config.data.dir = "made-up"
        config.model.hidden = (8, 8)
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
