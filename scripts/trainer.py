"""A training run as a pure function, for scripts to vmap over seeds and rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpfree.training import losses, steps
from bpfree.training.loss_functions import cross_entropy


def train(
    make, model, data, seed, rate, *, batch_size, num_steps, wrap=lambda adam: adam
) -> steps.TrainState:
    """The end of a run by Adam with a cosine schedule from `rate`.

    Args:
      make: seed -> estimator, an optax transformation.
      data: `Dataset`; its training part may be on the device.
      seed, rate: of this run, traced or not.
      wrap: optimiser -> optimiser, around Adam and its schedule.
    """
    keys = steps.make_keys(seed)
    example = jax.tree.map(lambda a: a[:batch_size], data.train)
    params, model_state = steps.init_variables(model, keys.init, example)
    tx = optax.chain(make(keys.estimator), wrap(adam(rate, num_steps)))
    task = steps.Task(model, tx, measure(model), data.augment, keys, batch_size)
    state = steps.TrainState(jnp.int32(0), params, model_state, tx.init(params))
    return steps.advance(task, num_steps, state, data.train)[0]


def shapes(model, example):
    """The shapes of the model's parameters, for inputs like those of the example."""
    return jax.eval_shape(
        lambda: steps.init_variables(model, jax.random.key(0), example)[0]
    )


def adam(rate, num_steps) -> optax.GradientTransformation:
    """Adam with a cosine schedule; the rate may be traced."""
    schedule = optax.cosine_decay_schedule(1.0, num_steps)
    return optax.chain(
        optax.scale_by_adam(), optax.scale_by_schedule(schedule), optax.scale(-rate)
    )


def only(layer: str, adam) -> optax.GradientTransformation:
    """The optimiser of one layer of the parameters; all else stays."""

    def labels(params):
        return {name: "moves" if name == layer else "stays" for name in params}

    return optax.partition({"moves": adam, "stays": optax.set_to_zero()}, labels)


def best(rates, validation):
    """The rate with the best validation accuracy; nan counts as 0."""
    return rates[int(np.nan_to_num(np.asarray(validation)).argmax())]


def measure(model):
    """`(params, model_state, batch) -> {"accuracy": ()}`."""
    return losses.measure(losses.find_metrics({}, ()), model, cross_entropy)


def on_device(data):
    """The data set with its three parts on the device."""
    parts = jax.device_put((data.train, data.validation, data.test))
    return data._replace(train=parts[0], validation=parts[1], test=parts[2])
