"""From checked settings to something that can be trained."""

from typing import Any, NamedTuple

import jax
import optax

import bpfree
import bpfree.models
from bpfree.data import Batch, Dataset, catalogue, digits, images
from bpfree.training import chain, config, steps
from bpfree.training.names import ConfigError, call, member, unknown


class Job(NamedTuple):
    """A checked config, made ready to run."""

    settings: config.Settings
    data: Dataset
    task: steps.Task
    loss_fn: Any
    num_samples: int
    params: Any
    model_state: Any
    batch: Batch  # a batch of the training set, for its shapes


def prepare(settings: config.Settings) -> Job:
    """Data, model, chain and first parameters of a config; raises ConfigError."""
    model_module = member(bpfree.models, settings.model["name"], "config.model.name")
    data = _data(settings.data)
    size = len(data.train["label"])
    if settings.batch_size > size:
        raise ConfigError(
            f"config.batch_size={settings.batch_size} exceeds the {size} examples "
            "of the training set"
        )
    given = {"num_classes": data.num_classes}
    model = call(model_module.Model, _rest(settings.model), "config.model", given)
    keys = steps.make_keys(settings.seed)
    batch = {k: v[: settings.batch_size] for k, v in data.train.items()}

    def init(key):
        return steps.init_variables(model, key, batch)

    try:
        shapes, state_shapes = jax.eval_shape(init, keys.init)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.model: {error}") from error
    batch = steps.with_state(batch, state_shapes)
    loss_fn = _objective(model, tuple(state_shapes))
    built = chain.build(settings.chain, settings.sections, loss_fn, keys.estimator, batch)
    chain.check(built, shapes, batch)
    task = steps.Task(
        model, built.transformation, data.augment, keys, settings.batch_size
    )
    params, model_state = jax.jit(init)(keys.init)
    return Job(
        settings, data, task, loss_fn, built.num_samples, params, model_state, batch
    )


def _objective(model: Any, mutable: tuple[str, ...]) -> Any:
    """What the model itself says is minimised, or else its cross-entropy."""
    if hasattr(model, "objective"):
        return model.objective()
    loss = optax.softmax_cross_entropy_with_integer_labels
    return bpfree.supervised(model, loss, mutable=mutable, train=True)


def _data(section: dict[str, Any]) -> Dataset:
    name = section["name"]
    if name == "digits":
        return call(digits.load, _rest(section), "config.data")
    if name not in catalogue.SETS:
        raise unknown("config.data.name", name, ["digits", *catalogue.SETS])
    return call(images.load, _rest(section), "config.data", {"name": name})


def _rest(section: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in section.items() if k != "name"}
