"""CIFAR-10 by decorrelated backpropagation: a convnet, ResNet-18 or ResNet-50.

    bpfree-train --config=configs/dbp_cifar10.py --workdir=runs/dbp_cifar10

The convnet 3-16-32-32-64-64 without norms, standardised pixels, and the default rule of
`decorrelate` around Adam. Variants: `dbp_cifar10.py:convnet_dbp` (the papers' rule, every
step), `:convnet_bp` (the control), `:resnet18`, `:resnet18_dbp`, `:resnet18_bp`,
`:resnet50`, `:resnet50_dbp`, `:resnet50_bp` (CIFAR stems, batch norm; made for an
accelerator) and `:smoke`, one step of a small net on made-up data.

Reads the folder `cifar10_jpeg` of the directory that BPFREE_DATA_DIR names (a JPEG copy;
`--config.data.name=cifar10` for the original files). Steps and seconds of the convnet to
backprop's loss: `scripts/compare_decorrelation.py`; no accuracy has been measured with
this file.
"""

from ml_collections import ConfigDict

_MODELS = {
    "convnet": {"name": "vgg", "stages": ((16,), (32, 32), (64, 64)), "pool": "stride"},
    "resnet18": {"name": "resnet", "layers": 18, "width": 64, "norm": "batch"},
    "resnet50": {"name": "resnet", "layers": 50, "width": 64, "norm": "batch"},
}
_ARGS = ("", "smoke", *(f"{m}{rule}" for m in _MODELS for rule in ("", "_dbp", "_bp")))
_STEPS_PER_EPOCH = 45000 // 128


def get_config(arg: str = "") -> ConfigDict:
    """A net by DBP; arg: a model, with "_dbp" or "_bp" behind it, or "smoke"."""
    if arg not in _ARGS:
        raise ValueError(
            f"unknown argument {arg!r}; the choices are {', '.join(_ARGS[1:])}, or none"
        )
    model, _, rule = arg.partition("_")
    config = ConfigDict()
    config.seed = 0
    config.data = {
        "name": "cifar10_jpeg",
        "flip": True,
        "crop": 4,
        "preprocess": "standardise",
        "dir": "",
    }
    config.model = _MODELS.get(model, _MODELS["convnet"])
    config.mesh = ""
    config.batch_size = 128
    config.num_steps = 20 * _STEPS_PER_EPOCH
    config.log_every = _STEPS_PER_EPOCH
    config.checkpoint_every = _STEPS_PER_EPOCH
    config.diagnostics = {"every": 0, "repeats": 8}
    config.schedule = {"init_value": 2e-3, "decay_steps": config.get_ref("num_steps")}
    config.inner = {"learning_rate": ("cosine_decay_schedule", "schedule")}
    if rule == "bp":
        config.chain = (("backprop", {}), ("adam", "inner"))
        return config.lock()
    papers = {"rule": ("decorrelation.dbp", {"kappa": 0.01}), "every": 1, "fraction": 0.1}
    default = {"rule": "foof", "every": 10}
    options = papers if rule == "dbp" else default
    config.decorrelation = {"inner": ("adam", "inner"), **options}
    config.chain = (("backprop", {}), ("decorrelate", "decorrelation"))
    if arg == "smoke":
        config.data.dir = "made-up"
        config.model.stages = ((4,), (4, 4), (4, 4))
        config.batch_size = 8
        config.num_steps = config.log_every = config.checkpoint_every = 1
    return config.lock()
