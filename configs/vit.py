"""Handwritten digits (8 x 8) by node perturbation: a small vision transformer.

    bpfree-train --config=configs/vit.py --workdir=runs/vit

Patches of 2 x 2 pixels, 16 of them, through two blocks of attention (4 heads) and MLP, 32
numbers wide. Noise stands behind every Dense layer, one layer at a time, so that query,
key, value, and each sum on the residual stream have a signal of their own, and nothing is
carried from one layer to another.

Arms: `vit.py:dnp` (node perturbation, decorrelated), `vit.py:feedback` (learned
feedback), `vit.py:bp` (backprop, the twin), `vit.py:dbp` (the same, decorrelated),
`vit.py:frozen` (backprop on the last layer alone, the control); and `vit.py:smoke` (one
step on tiny shapes, seconds). Seeds: `--config.seed=1`.

Test accuracy, three seeds of each arm: `results/architectures.json`, written by
`python scripts/launched.py --table=architectures`; 17 to 49 CPU seconds each.

One image is worth .0028. The control has a rate of its own, the best of 3e-3, 3e-2 and
1e-1 on validation (its edge; seed 0); node perturbation the better one of 3e-3 and 1e-2,
which feedback and bp take as it is.
"""

from ml_collections import ConfigDict

_NOISE = {"num_samples": 2, "sigma": 0.01, "layerwise": True}
_ARMS = {
    "": ("node_perturbation", _NOISE),
    "dnp": ("node_perturbation", _NOISE),
    "feedback": ("learned_feedback", {}),
    "bp": ("backprop", {}),
    "dbp": ("backprop", {}),
    "frozen": ("backprop", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    """Digits by a vision transformer; arg: an arm, or "smoke"."""
    if arg not in (*_ARMS, "smoke"):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are dnp, feedback, bp, dbp, frozen, "
            "smoke, or none at all"
        )
    name, kwargs = _ARMS.get(arg, _ARMS[""])
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "digits", "shift": 0.5, "pixel_noise": 0.1}
    config.model = {"name": "vit", "image": (8, 8, 1), "patch": 2}
    config.model.update({"width": 32, "depth": 2, "heads": 4})
    config.mesh = ""
    config.batch_size = 64
    config.num_steps = 1500
    config.log_every = 100
    config.checkpoint_every = 500
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs
    rate = 1e-1 if arg == "frozen" else 3e-3
    config.schedule = {"init_value": rate, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    if arg == "frozen":
        config.frozen = ("Dense_0", "Block_0", "Block_1")
    config.chain = ((name, "estimator"), adam)
    if arg in ("dnp", "dbp"):
        config.decorrelation = {"inner": adam}
        config.chain = ((name, "estimator"), ("decorrelate", "decorrelation"))
    if arg == "smoke":
        config.model.update({"patch": 4, "width": 4, "depth": 1, "heads": 2})
        config.estimator.layerwise = False  # one program in place of nine
        config.batch_size = 8
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
