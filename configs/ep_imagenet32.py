"""ImageNet at 32 x 32 by equilibrium propagation: the recipe of ep_cifar10.py.

    bpfree-train --config=configs/ep_imagenet32.py:wide --workdir=runs/ep_imagenet32

Batch 256 and weight decay 5e-4, as in Laborieux & Zenke 2022 (Table 2: last-epoch top-1
accuracy 36.49 % after 90 epochs, mean of 3 seeds); what differs from theirs is listed in
ep_cifar10.py. Needs the copy that TFDS prepares of `imagenet_resized/32x32`. Never run
here but for its smoke variant (`:smoke`, one step on made-up data).
"""

from pathlib import Path
from runpy import run_path

from ml_collections import ConfigDict

_cifar10 = run_path(str(Path(__file__).with_name("ep_cifar10.py")))["get_config"]
_STEPS_PER_EPOCH = (1_281_167 - 5000) // 256


def get_config(arg: str = "") -> ConfigDict:
    """The recipe of ep_cifar10.py on ImageNet32; arg: "wide" or "smoke"."""
    config = _cifar10(arg)
    with config.unlocked():
        config.data.name = "imagenet_resized/32x32"
        if arg == "smoke":
            return config
        config.batch_size = 256
        config.num_steps = 90 * _STEPS_PER_EPOCH
        config.log_every = config.checkpoint_every = _STEPS_PER_EPOCH
        links = list(config.chain)
        links[2] = ("add_decayed_weights", {"weight_decay": 5e-4})
        config.chain = tuple(links)
    return config.lock()
