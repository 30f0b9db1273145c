"""A curve with noise: data, model, loss and metric from mine.py, next to this file."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = "./mine.py:load"
    config.model = {"name": "./mine.py:Net", "width": 64}
    config.loss = {"name": "./mine.py:huber", "delta": 0.5}
    config.metrics = (
        {"name": "./mine.py:explained", "lower_is_better": False},
        "absolute_error",
    )
    config.batch_size = 60
    config.num_steps = 600
    config.log_every = 200
    config.checkpoint_every = 600
    config.estimator = {"num_samples": 16}
    config.adam = {"learning_rate": 0.01}
    config.chain = (("node_perturbation", "estimator"), ("adam", "adam"))
    return config.lock()


def get_sweep() -> list[dict]:
    """Two rates; `bpfree-sweep --config=config.py --workdir=runs/sweep`."""
    return [{"adam.learning_rate": rate} for rate in (0.003, 0.01)]
