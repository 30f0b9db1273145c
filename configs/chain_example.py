"""A longer chain, as an example of what a config can say. Tuned for nothing.

    bpfree-train --config=configs/chain_example.py --workdir=runs/chain

Node perturbation with antithetic pairs and a sigma that shrinks on a schedule; clipping;
and one rule for each part of the network: AdamW with warm-up for the hidden layers, plain
momentum for the last one. The labels of `partition` are a prefix of the parameter tree,
whose entries are Flax's names of the layers.

Measured once (seed 0): test accuracy .949, 8 s on two CPU cores shared with other jobs.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The longer chain; arg "smoke": one step on tiny shapes."""
    if arg not in ("", "smoke"):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are smoke, or none at all"
        )
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "digits"}
    config.model = {"name": "mlp", "hidden": (64,), "activation": "tanh"}
    config.mesh = ""
    config.batch_size = 32
    config.num_steps = 2000
    config.log_every = 100
    config.checkpoint_every = 500
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = {
        "num_samples": 16,
        "antithetic": True,
        "sigma": ("exponential_decay", "sigma"),
    }
    config.sigma = {"init_value": 0.1, "decay_rate": 0.1, "end_value": 0.01}
    config.sigma.transition_steps = config.get_ref("num_steps")
    config.warmup = {"init_value": 0.0, "peak_value": 5e-3, "warmup_steps": 100}
    config.warmup.decay_steps = config.get_ref("num_steps")
    config.chain = (
        ("node_perturbation", "estimator"),
        ("clip_by_global_norm", {"max_norm": 1.0}),
        (
            "partition",
            {
                "transforms": {
                    "hidden": (
                        "adamw",
                        {
                            "learning_rate": ("warmup_cosine_decay_schedule", "warmup"),
                            "weight_decay": 1e-4,
                        },
                    ),
                    "last": ("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
                },
                "param_labels": {"Dense_0": "hidden", "Dense_1": "last"},
            },
        ),
    )
    if arg == "smoke":
        config.model.hidden = (8,)
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
        config.warmup.warmup_steps = 0
    return config.lock()
