"""From checked settings to something that can be trained."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from bpfree.data import (
    Batch,
    Dataset,
    Examples,
    arrays,
    catalogue,
    characters,
    digits,
    events,
    first,
    graphs,
    images,
    one_by_one,
    sizes,
    text,
)
from bpfree.equilibrium.energy import Energy
from bpfree.program.trace import arguments
from bpfree.training import (
    chain,
    config,
    feed,
    frozen,
    losses,
    mesh,
    model,
    objective,
    own,
    pretrained,
    steps,
)
from bpfree.training.names import ConfigError, call, check_known, unknown

LOADERS = ("device", "grain")
_NAMED = (
    (catalogue.TEXTS, text.load),
    (catalogue.EVENTS, events.load),
    (catalogue.GRAPHS, graphs.load),
    (characters.TEXTS, characters.load),
)


class Job(NamedTuple):
    """A checked config, made ready to run."""

    settings: config.Settings
    data: Dataset
    task: steps.Task
    loss_fn: Any
    num_samples: int
    estimator: Any  # the first link of the chain
    params: Any
    model_state: Any
    batch: Batch  # a batch of the training set, for its shapes

    def make_feed(self) -> feed.Feed:
        """The supply of training batches, from its beginning."""
        if isinstance(self.data.train, Examples):
            return feed.from_grain(self.task, self.data.train, self.data.validation)
        return feed.on_device(self.task, mesh.put(self.task.mesh, self.data.train))


def prepare(settings: config.Settings) -> Job:
    """Data, model, chain and first parameters of a config; raises ConfigError."""
    return assemble(settings, load(settings))


def load(settings: config.Settings) -> Dataset:
    """The data set of a config; raises ConfigError."""
    model.constructor(settings.model["name"])  # before the data, which may take long
    return _data(settings.data)


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
    _check_losses(made)
    chain.check(made.chain, made.shapes, made.batch)
    params, model_state = jax.jit(made.init)(made.task.keys.init)
    return Job(
        settings,
        data,
        made.task,
        made.loss_fn,
        made.chain.num_samples,
        made.chain.estimator,
        params,
        model_state,
        made.batch,
    )


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

    try:
        shapes, state_shapes = jax.eval_shape(init, keys.init)
    except ConfigError:
        raise
    except ZeroDivisionError as error:  # of initialisers: 1 / fan-in
        raise ConfigError(f"config.model={settings.model}: a size of 0?") from error
    except Exception as error:  # of all kinds: Flax's, JAX's, the user's own
        raise ConfigError(f"config.model: {type(error).__name__}: {error}") from error
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
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
    if settings.diagnostics["every"] and isinstance(loss_fn, Energy):
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


def _check_losses(made: Draft) -> None:
    """Trace loss and metrics; ConfigError with what they refuse."""
    batch, key = made.batch, jax.random.key(0)
    where = "config.loss"
    try:
        if not isinstance(made.loss_fn, Energy):
            loss_fn = made.loss_fn
            jax.eval_shape(loss_fn, *arguments(loss_fn, made.shapes, batch, key))
        where = "config.metrics"
        jax.eval_shape(made.task.measure, made.shapes, batch["state"], batch)
    except Exception as error:  # of all kinds: Flax's, JAX's, the user's own
        kind = type(error).__name__
        raise ConfigError(
            f"{where} does not run on this model and data: {kind}: {error}"
        ) from error


def _data(section: dict[str, Any]) -> Dataset:
    """The data set; with loader="grain", its training part as `Examples`."""
    name, loader = section["name"], section.get("loader", "device")
    if loader not in LOADERS:
        raise unknown("config.data.loader", loader, LOADERS)
    rest, lazy = _rest(section), loader == "grain"
    if own.is_own(name):
        found = call(own.find(name, "config.data"), rest, "config.data")
        given = {"found": found, "name": name}
        data = call(arrays.dataset, {}, "config.data", given)
    elif name.endswith(".npz"):
        data = call(arrays.load, rest, "config.data", {"path": name})
    elif name == "digits":
        data = call(digits.load, rest, "config.data")
    elif name in catalogue.SETS:
        data = call(images.load, rest, "config.data", {"name": name, "lazy": lazy})
    else:
        found = [load for names, load in _NAMED if name in names]
        if not found:
            more = [n for names, _ in _NAMED for n in names]
            choices = ["digits", *catalogue.SETS, *more]
            raise unknown("config.data.name", name, choices)
        data = call(found[0], rest, "config.data", {"name": name})
    if lazy and not isinstance(data.train, Examples):
        data = data._replace(train=one_by_one(data.train))
    return data


def _rest(section: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in section.items() if k not in ("name", "loader")}
