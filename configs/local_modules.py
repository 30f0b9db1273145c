"""Local modules: nodes at the ends of blocks only, or at all layers; Fashion-MNIST.

    bpfree-train --config=configs/local_modules.py --workdir=runs/local_modules

An MLP 784-128x5-10, six dense layers, as three blocks of two. Nodes stand where noise
goes in and where the graph is cut. `local_modules.py:ends` (the default) has them behind
each block, and backprop inside of it reaches one layer down; `local_modules.py:all` has
them behind every layer, and no error signal passes a weight. Both by node perturbation
with 32 noisy passes of the whole net. `local_modules.py:ends_feedback` and
`:all_feedback` are the same by learned feedback, `:bp` is backprop (the twin), `:frozen`
backprop on the last layer alone (the control), and `:smoke` one step of a small net on
made-up data. Seeds: `--config.seed=1`.

Test accuracy, three seeds of each arm: `results/local_modules.json`, written by
`python scripts/launched.py --table=local_modules`; 4 to 47 s each on
a CPU beside other jobs.
"""

from ml_collections import ConfigDict

_NODES = {"ends": ("Dense_1", "Dense_3", "Dense_5"), "all": None}
_ARMS = {
    "": ("node_perturbation", {"num_samples": 32, "sigma": 1e-2}),
    "feedback": ("learned_feedback", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    """arg: "ends" or "all", with "_feedback" or not; "bp", "frozen" or "smoke"."""
    where, _, arm = ("ends" if arg in ("", "smoke") else arg).partition("_")
    exact = arg in ("bp", "frozen")
    if not exact and (where not in _NODES or arm not in _ARMS):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are ends, all, each alone or with "
            "_feedback behind it, and bp, frozen, smoke"
        )
    name, kwargs = ("backprop", {}) if exact else _ARMS[arm]
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "fashion_mnist", "preprocess": "centre", "dir": ""}
    config.model = {"name": "mlp", "hidden": (128,) * 5}
    config.mesh = ""
    config.batch_size = 64
    config.num_steps = 2000
    config.log_every = 100
    config.checkpoint_every = 1000
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs if exact else {"nodes": _NODES[where], **kwargs}
    rate = 1e-1 if arg == "frozen" else 1e-3
    config.schedule = {"init_value": rate, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    if arg == "frozen":
        config.frozen = tuple(f"Dense_{i}" for i in range(5))
    config.chain = ((name, "estimator"), adam)
    if arg == "smoke":
        config.data.dir = "made-up"
        config.model.hidden = (4,) * 5
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
