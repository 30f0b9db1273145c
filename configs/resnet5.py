"""CIFAR-10 (JPEG copy) by the nets of the likelihood-ratio papers: ResNet-5 and VGG-8.

    bpfree-train --config=configs/resnet5.py --workdir=runs/resnet5

Node perturbation, layer by layer, 16 samples for each, 2,000 steps. Their own recipe has
50 to 800 samples a layer, batch 100 and 100 epochs by Adam 1e-3
(`resnet5.py:resnet5_published` is that with 150 a layer, days on a CPU and not run here;
their group's diary ends at 69.7 %).

Nets: `resnet5.py:resnet5` (the default), `resnet5.py:vgg8`. With each of them the arms:
`resnet5.py:resnet5_dnp` (node perturbation, decorrelated), `resnet5.py:resnet5_feedback`
(learned feedback), `resnet5.py:resnet5_bp` (backprop, the twin), `resnet5.py:resnet5_dbp`
(the same, decorrelated; not measured), `resnet5.py:resnet5_frozen` (backprop on the last
layer alone, the control); and `resnet5.py:smoke`, one step of a small net on made-up
data. Seeds: `--config.seed=1`.

docs/benchmarks/architectures.md has test accuracies. Minutes of one CPU core beside other
jobs:

                          ResNet-5   VGG-8
    node perturbation       22
    dnp                   17 to 24
    feedback               4 to 5   7 to 10
    bp                      2.5        4
    frozen                   .5        1

The rate is that of their recipe, 1e-3; with --config.schedule.init_value=3e-3 every arm
of ResNet-5 does better.

The run reads the folder `cifar10_jpeg` of the directory that BPFREE_DATA_DIR names: a
JPEG copy (quality about 75) of all 60,000 images, not the exact pixels. For the exact
ones: `--config.data.name=cifar10`.
"""

from ml_collections import ConfigDict

_MODELS = {
    "resnet5": {"name": "resnet5"},
    "vgg8": {
        "name": "vgg",
        "stages": ((16, 16), (32, 32), (64, 64)),
        "pool": "max",
        "hidden": (256,),
    },
}
_FROZEN = {
    "resnet5": tuple(f"Conv_{i}" for i in range(4)),
    "vgg8": (*(f"Conv_{i}" for i in range(6)), "Dense_0"),
}
_NOISE = {"num_samples": 16, "sigma": 1e-3, "layerwise": True}
_ARMS = {
    "": ("node_perturbation", _NOISE),
    "dnp": ("node_perturbation", _NOISE),
    "published": ("node_perturbation", {**_NOISE, "num_samples": 150}),
    "feedback": ("learned_feedback", {}),
    "bp": ("backprop", {}),
    "dbp": ("backprop", {}),
    "frozen": ("backprop", {}),
}


def get_config(arg: str = "") -> ConfigDict:
    """A net by node perturbation; arg: a net, with an arm behind it, or "smoke"."""
    net, _, arm = ("resnet5" if arg in ("", "smoke") else arg).partition("_")
    if net not in _MODELS or arm not in _ARMS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are resnet5, vgg8, each alone or "
            "with _dnp, _feedback, _bp, _dbp, _frozen or _published behind it, and smoke"
        )
    name, kwargs = _ARMS[arm]
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "cifar10_jpeg", "flip": True, "crop": 0, "dir": ""}
    config.data.preprocess = "standardise"
    config.model = _MODELS[net]
    config.mesh = ""
    config.batch_size = 100
    config.num_steps = 45000 if arm == "published" else 2000
    config.log_every = config.num_steps // 20
    config.checkpoint_every = config.num_steps // 4
    config.diagnostics = {"every": 0, "repeats": 8}
    config.estimator = kwargs
    config.schedule = {"init_value": 1e-3, "decay_steps": config.get_ref("num_steps")}
    adam = ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")})
    if arm == "frozen":
        config.frozen = _FROZEN[net]
    config.chain = ((name, "estimator"), adam)
    if arm in ("dnp", "dbp"):
        config.decorrelation = {"inner": adam}
        config.chain = ((name, "estimator"), ("decorrelate", "decorrelation"))
    if arg == "smoke":
        config.data.dir = "made-up"
        config.batch_size = 8
        config.estimator.num_samples = 2
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
