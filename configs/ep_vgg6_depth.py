"""Depth: six convolutions by equilibrium propagation, N = 4 points, on CIFAR-10.

    bpfree-train --config=configs/ep_vgg6_depth.py --workdir=runs/ep_vgg6

"VGG6" of Laborieux & Zenke 2022 (arXiv:2209.00530, Fig. 4c), at a quarter of its width:
128, 128, 256, 256, 512, 512 channels there, three softmax poolings of temperature 10,
dSiLU, |beta| = 1, weight decay 5e-4, a learning rate for each layer. Not theirs: the
adaptive relaxation (260 and 60 plain sweeps), as much decay for the readout as for the
rest, cosine annealing at every step. Their best-epoch accuracy: 84.6 % for N = 2, 85.7 %
for N = 4 (3 seeds), which is below the four-layer net's 88.6 %. Trained here for no more
than its smoke variant; how good its gradients are before training, against depth and
|beta|: `scripts/ep_depth.py`.

Variants: `ep_vgg6_depth.py:centred` (N = 2), `ep_vgg6_depth.py:wide` (their width),
`ep_vgg6_depth.py:published` (their width and sweeps) and `ep_vgg6_depth.py:smoke`, one
step of a small net on made-up data.
"""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict

_cifar10 = run_path(str(Path(__file__).with_name("ep_cifar10.py")))["get_config"]
_CHANNELS = (128, 128, 256, 256, 512, 512)
_POOLED = (True, False, True, False, True, False)
_PADDED = (True, True, True, False, True, False)
_RATES = (0.05, 0.04, 0.04, 0.03, 0.03, 0.02, 0.02)


def get_config(arg: str = "") -> ConfigDict:
    """The deep network by EP; arg: one of the variants above."""
    if arg not in ("", "centred", "wide", "published", "smoke"):
        raise ValueError(
            f"unknown argument {arg!r}; the choices are centred, wide, published, smoke, "
            "or none at all"
        )
    wide = arg in ("wide", "published")
    config = _cifar10({"centred": ""}.get(arg, arg))
    names = [*(f"layer_{i}" for i in range(1, 7)), "readout"]
    with config.unlocked():
        config.model.update(
            {
                "channels": tuple(n if wide else n // 4 for n in _CHANNELS),
                "pooled": _POOLED,
                "padded": _PADDED,
                "temperature": 10.0,
            }
        )
        if arg == "smoke":
            config.model.channels = (2,) * 6
        if arg != "centred":
            circle = {"radius": 1.0, "num_points": 4}
            config.estimator.nudging = ("equilibrium.holomorphic", circle)
        links = list(config.chain)
        links[2] = ("add_decayed_weights", {"weight_decay": 5e-4})
        transforms = {
            name: ("scale_by_learning_rate", {"learning_rate": rate})
            for name, rate in zip(names, _RATES, strict=True)
        }
        labels = {name: name for name in names}
        links[4] = ("partition", {"transforms": transforms, "param_labels": labels})
        config.chain = tuple(links)
    return config.lock()
