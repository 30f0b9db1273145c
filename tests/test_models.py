"""The launcher's models."""

import jax
import jax.numpy as jnp
import optax
import pytest

import bpfree
from bpfree.models import convnet
from tests import problems
from tests.statistics import assert_close

ROWS = jax.random.normal(jax.random.key(0), (4, 64), jnp.float32)


def test_images_and_rows_are_the_same():
    rows = convnet.Model(3, channels=(2,), image=(8, 8, 1))
    images = convnet.Model(3, channels=(2,))
    params = rows.init(jax.random.key(0), ROWS)["params"]
    logits = rows.apply({"params": params}, ROWS)
    assert logits.shape == (4, 3)
    again = images.apply({"params": params}, ROWS.reshape(4, 8, 8, 1))
    assert_close(again, logits, rtol=0.0)


def test_without_a_norm_the_pullback_is_the_gradient():
    model = convnet.Model(3, channels=(2, 2), activation="tanh", image=(8, 8, 1))
    batch = {"x": ROWS, "label": jnp.arange(4) % 3}
    params = model.init(jax.random.key(0), ROWS)["params"]
    loss = optax.softmax_cross_entropy_with_integer_labels
    objective = bpfree.supervised(model, loss, train=True)
    with jax.numpy_dtype_promotion("standard"):
        pulled, truth = problems.pulled_and_truth(objective, params, batch)
    assert_close(pulled, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm": "layer"}, "norm 'layer' is unknown.*'none', 'batch'"),
        ({"activation": "step"}, "activation 'step' is unknown; choose one of relu"),
        ({"image": ()}, r"examples of shape \(64,\) are no images: set image="),
    ],
)
def test_mistakes(fields, message):
    model = convnet.Model(3, **{"image": (8, 8, 1), **fields})
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), ROWS)
