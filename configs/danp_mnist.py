"""MNIST by DANP: activity node perturbation with decorrelated inputs, MLP 784-1024x3-10.

    bpfree-train --config=configs/danp_mnist.py --workdir=runs/danp_mnist

The setting of the official code, which others have measured: batch 1000, 20 epochs,
Adam 1e-3, raw pixels, one noisy pass a step with sigma 0.01, and R of every layer moved
at every step by the rule without a variance term (kappa = 0) at the rate 1e-3.

docs/benchmarks/decorrelation.md has its test accuracy (others: 96.4 % with the official
code, the best of all epochs); 12 to 19 minutes of one core beside other jobs. The
variants have not been measured on MNIST.

Reads the folder `mnist` of the directory that BPFREE_DATA_DIR names.

Variants: `danp_mnist.py:anp` (no decorrelation), `:anp_centred` (the same on centred
inputs), `:lazy` (R moved every 5 steps, at 5e-3, from 512 rows) and `:smoke`, one step of
a small net on made-up data.
"""

from ml_collections import ConfigDict

_STEPS_PER_EPOCH = 55000 // 1000
_ARGS = ("", "anp", "anp_centred", "lazy", "smoke")


def get_config(arg: str = "") -> ConfigDict:
    """The MLP by DANP; arg: "anp", "anp_centred", "lazy" or "smoke"."""
    if arg not in _ARGS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are anp, anp_centred, lazy, smoke, "
            "or none at all"
        )
    preprocess = "centre" if arg == "anp_centred" else "none"
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "mnist", "preprocess": preprocess, "dir": ""}
    config.model = {"name": "mlp", "hidden": (1024,) * 3, "activation": "leaky_relu"}
    config.mesh = ""
    config.batch_size = 1000
    config.num_steps = 20 * _STEPS_PER_EPOCH
    config.log_every = _STEPS_PER_EPOCH
    config.checkpoint_every = _STEPS_PER_EPOCH
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = {"num_samples": 1, "sigma": 0.01}
    config.inner = {"learning_rate": 1e-3}
    config.rule = {"kappa": 0.0, "rate": 5e-3 if arg == "lazy" else 1e-3}
    if arg.startswith("anp"):
        del config.rule
        config.chain = (("activity_node_perturbation", "estimator"), ("adam", "inner"))
        return config.lock()
    config.decorrelation = {
        "inner": ("adam", "inner"),
        "rule": ("decorrelation.dbp", "rule"),
        "every": 5 if arg == "lazy" else 1,
        "cap": 512 if arg == "lazy" else 1000,
        "block": None,
    }
    config.chain = (
        ("activity_node_perturbation", "estimator"),
        ("decorrelate", "decorrelation"),
    )
    if arg == "smoke":
        config.data.dir = "made-up"
        config.model.hidden = (8,) * 3
        config.batch_size = 8
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
