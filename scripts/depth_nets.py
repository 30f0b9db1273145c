"""Deep nets with their data, for `scripts/depth.py`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
import trainer

from bpfree.data import characters, images, preprocess
from bpfree.models import resnet, transformer
from bpfree.training import model as models
from bpfree.training import steps

SLICE = 1000  # examples that are scored at once


class Net(NamedTuple):
    """A model with its data, on the device.

    Attributes:
      loss_fn: of its parameters and a batch.
      readout: the last layer's name among its parameters.
      batch, params: what estimators are made for, and shapes of the parameters.
    """

    model: Any
    data: Any
    loss_fn: Callable[..., Any]
    readout: str
    batch: Any
    params: Any


def causal(depth: int, width: int, length: int, batch_size: int) -> Net:
    """A transformer of `depth` blocks, 4 heads, on the text of Python's own help."""
    data = characters.load("python_topics", length=length)
    model = transformer.Model(data.num_classes, width, depth)
    return _net(model, data, "Dense_1", batch_size)


def residual(
    depth: int, width: int, name: str, norm: str, batch_size: int, dir: str = ""
) -> Net:
    """A residual net of `depth` layers on an image set, standardised; 32 x 32 pixels."""
    data = images.load(name, flip=True, dir=dir)
    parts = (data.train, data.validation, data.test)
    train, validation, test = ({**p, "x": _pooled(p["x"], 32)} for p in parts)
    data = data._replace(train=train, validation=validation, test=test)
    data = preprocess.preprocessed(data, "standardise", preprocess.EPSILON)
    model = resnet.Model(data.num_classes, depth, width, norm=norm)
    return _net(model, data, "Dense_0", batch_size)


def scores(net: Net, state: steps.TrainState, part) -> dict[str, float]:
    """Accuracy, and bits per label: per character, or per image."""
    size = len(part["label"])
    totals = {"accuracy": 0.0, "bits": 0.0}
    for start in range(0, size, SLICE):
        piece = jax.tree.map(lambda a, i=start: a[i : i + SLICE], part)
        found = _scores(net.model, state.params, state.model_state, piece)
        share = len(piece["label"]) / size
        totals = {k: v + share * float(found[k]) for k, v in totals.items()}
    return totals


def _net(model, data, readout: str, batch_size: int) -> Net:
    batch = jax.tree.map(lambda a: a[:batch_size], data.train)
    made = steps.init_variables
    params, state = jax.eval_shape(lambda: made(model, jax.random.key(0), batch))
    variables = {"params": params, **state}
    loss_fn = models.supervised(model, _loss, "preactivation", variables, batch["x"])
    batch = steps.with_state(batch, state)
    return Net(model, trainer.on_device(data), loss_fn, readout, batch, params)


def _loss(logits, label):
    """Cross-entropy of each example; of a text, the mean over its positions."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.reshape(len(label), -1).mean(-1)


@partial(jax.jit, static_argnums=0)
def _scores(model, params, model_state, part):
    logits = model.apply({"params": params, **model_state}, part["x"])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, part["label"])
    right = logits.argmax(-1) == part["label"]
    return {"accuracy": right.mean(), "bits": nats.mean() / math.log(2)}


def _pooled(x, side: int):
    """Means over squares of pixels of (N, H, H, C), so that `side` of them are left."""
    n, height, _, channels = x.shape
    size = height // side
    return x.reshape(n, side, size, side, size, channels).mean((2, 4))
