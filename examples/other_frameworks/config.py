"""Digits by nets of Haiku and Equinox, from nets.py, next to this file.

bpfree-train --config=config.py:haiku --workdir=runs/haiku
bpfree-train --config=config.py:equinox --workdir=runs/equinox
"""

from ml_collections import ConfigDict

NETS = {"haiku": "HaikuNet", "equinox": "EquinoxNet"}


def get_config(framework: str = "haiku") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "digits"}
    config.model = {"name": f"./nets.py:{NETS[framework]}", "width": 64}
    config.loss = f"./nets.py:{framework}_loss"
    config.metrics = "accuracy"
    config.batch_size = 128
    config.num_steps = 1000
    config.log_every = 200
    config.checkpoint_every = 1000
    config.estimator = {"num_samples": 16}
    config.adam = {"learning_rate": 3e-3}
    config.chain = (("node_perturbation", "estimator"), ("adam", "adam"))
    return config.lock()
