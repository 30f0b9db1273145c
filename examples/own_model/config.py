"""Two spirals: data, model and estimator from mine.py, next to this file."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = {"name": "./mine.py:load", "num": 600}
    config.model = {"name": "./mine.py:model", "width": 64}
    config.batch_size = 60
    config.num_steps = 600
    config.log_every = 200
    config.checkpoint_every = 600
    config.estimator = {"num_samples": 16}
    config.adam = {"learning_rate": 0.01}
    config.chain = (("./mine.py:estimator", "estimator"), ("adam", "adam"))
    return config.lock()
