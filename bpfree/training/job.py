"""From checked settings to something that can be trained."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bpfree.data import Batch, Dataset, Examples, first, sizes
from bpfree.equilibrium.energy import Energy
from bpfree.program.trace import arguments
from bpfree.training import (
    chain,
    config,
    dataset,
    feed,
    frozen,
    losses,
    mesh,
    model,
    objective,
    pretrained,
    steps,
)
from bpfree.training.names import ConfigError, check_known, config_errors


class Job(NamedTuple):
    """A checked config, made ready to run.

    Attributes:
      params, model_state: the first ones of the run.
      batch: a batch of the training set, for its shapes.
    """

    settings: config.Settings
    data: Dataset
    task: steps.Task
    chain: chain.Chain
    loss_fn: Any
    params: Any
    model_state: Any
    batch: Batch

    def make_feed(self) -> feed.Feed:
        """The supply of training batches, from its beginning."""
        if isinstance(self.data.train, Examples):
            batch = steps.without_state(self.batch)
            return feed.from_grain(self.task, self.data.train, batch)
        return feed.on_device(self.task, mesh.put(self.task.mesh, self.data.train))


def prepare(settings: config.Settings) -> Job:
    """Data, model, chain and first parameters of a config; raises ConfigError."""
    return assemble(settings, load(settings))


def load(settings: config.Settings) -> Dataset:
    """The data set of a config; raises ConfigError."""
    model.constructor(settings.model["name"])  # before the data, which may take long
    return dataset.load(settings.data)


class Draft(NamedTuple):
    """A job before anything of it has run.

    Attributes:
      init: key -> (params, model_state).
      batch: the first batch of the training set, with the shapes of the model's state.
    """

    task: steps.Task
    chain: chain.Chain
    loss_fn: Any
    init: Callable[[jax.Array], tuple[Any, Any]]
    batch: Batch
    shapes: Any


def assemble(settings: config.Settings, data: Dataset) -> Job:
    """What `prepare` does after the data."""
    made = draft(settings, data)
    _check_losses(made, settings.loss)
    _check_width(made, settings.loss, data.num_classes)
    chain.check(made.chain, made.shapes, made.batch)
    params, state = jax.jit(made.init)(made.task.keys.init)
    task, built, loss_fn, _, batch, _ = made
    return Job(settings, data, task, built, loss_fn, params, state, batch)


def draft(
    settings: config.Settings, data: Dataset, present: list[Any] | None = None
) -> Draft:
    """Model, objective and chain; the seed and the links' numbers may be traced."""
    devices = mesh.make(settings.mesh, present)
    mesh.check_batch(devices, settings.batch_size)
    size = sizes(data)["train"]
    if settings.batch_size > size:
        raise ConfigError(
            f"config.batch_size={settings.batch_size} exceeds the {size} examples "
            "of the training set"
        )
    net = model.build(settings.model, data.num_classes)
    keys = steps.make_keys(settings.seed)
    batch = first(data.train, settings.batch_size)
    found = pretrained.read(settings.pretrained)

    def init(key):
        made = steps.init_variables(net, key, batch)
        return pretrained.begin(settings.pretrained, found, *made)

    with config_errors("config.model"):
        try:
            shapes, state_shapes = jax.eval_shape(init, keys.init)
        except ZeroDivisionError as error:  # of initialisers: 1 / fan-in
            raise ConfigError(f"config.model={settings.model}: a size of 0?") from error
    for path, leaf in jax.tree.leaves_with_path(shapes):
        if leaf.size == 0:
            raise ConfigError(
                f"config.model={settings.model}: a size of 0 makes the parameter "
                f"{jax.tree_util.keystr(path)} of shape {leaf.shape}"
            )
    mesh.check_model(devices, shapes)
    modules = shapes if isinstance(shapes, Mapping) else ()
    check_known("config.frozen: module", settings.frozen, modules)
    batch = steps.with_state(batch, state_shapes)
    if settings.loss and hasattr(net, "objective"):
        raise ConfigError("config.loss: this model has an objective of its own")
    loss = losses.find_loss(settings.loss, net)
    variables = {"params": shapes, **state_shapes}
    loss_fn = objective.make(
        settings.objective, loss, net, settings.frozen, variables, batch["x"]
    )
    if settings.diagnostics.every and isinstance(loss_fn, Energy):
        raise ConfigError(
            "config.diagnostics compares with backprop through a loss function, and this "
            "model has an energy: leave it out"
        )
    built = chain.build(
        settings.chain,
        settings.sections,
        loss_fn,
        keys.estimator,
        batch,
        mesh.samples(devices),
    )
    moves = frozen.keep(settings.frozen, built.transformation)
    measure = losses.measure(find_metrics(settings), net, loss)
    size = settings.batch_size
    task = steps.Task(net, moves, measure, data.augment, keys, size, devices)
    return Draft(task, built, loss_fn, init, batch, shapes)


def find_metrics(settings: config.Settings) -> tuple[losses.Metric, ...]:
    """The metrics of a config, the one that says which run is best first; ConfigError."""
    return losses.find_metrics(settings.loss, settings.metrics)


def _check_width(made: Draft, loss: Mapping[str, Any], num_classes: int) -> None:
    """ConfigError for a label without a logit, whose cross-entropy would be nan, or if
    there is one class only, whose cross-entropy is 0."""
    own = hasattr(made.task.model, "objective") or isinstance(made.loss_fn, Energy)
    if own or loss.get("name", "cross_entropy") != "cross_entropy":
        return
    if num_classes < 2:
        raise ConfigError(
            "config.data: all labels are 0, and there is nothing to learn: "
            "cross_entropy takes two classes or more"
        )
    if (outputs := _outputs(made).shape[-1]) < num_classes:
        raise ConfigError(
            f"config.model: {outputs} outputs for labels of {num_classes} "
            "classes; its constructor may take num_classes"
        )


def _check_losses(made: Draft, loss: Mapping[str, Any]) -> None:
    """Trace model, loss and metrics; ConfigError with what they refuse."""
    batch, key, model = made.batch, jax.random.key(0), made.task.model
    if not isinstance(made.loss_fn, Energy):
        loss_fn = made.loss_fn
        of_outputs = not losses.is_objective(losses.find_loss(loss, model))
        if of_outputs and not hasattr(model, "objective"):
            with config_errors("config.model does not run on these data"):
                _outputs(made)
        with config_errors("config.loss does not run on this model and data"):
            jax.eval_shape(loss_fn, *arguments(loss_fn, made.shapes, batch, key))
    with config_errors("config.metrics does not run on this model and data"):
        jax.eval_shape(made.task.measure, made.shapes, batch["state"], batch)


def _outputs(made: Draft) -> Any:
    """The shape of the model's outputs for a batch."""
    variables = {**made.batch["state"], "params": made.shapes}
    return jax.eval_shape(made.task.model.apply, variables, made.batch["x"])
