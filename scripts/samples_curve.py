"""How the cosine of each layer grows with the samples: ResNet-5 on a batch of CIFAR-10.

    BPFREE_DATA_DIR=... python scripts/samples_curve.py [--samples=10,50,100,200]

Layer-wise likelihood ratio with the clean loss as baseline, at initialisation and after
`--steps` steps of backprop. For each layer the mean cosine of single estimates with the
gradient of the clean loss, and in brackets what the bias and variance at the first count
predict for the others.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import trainer
from absl import app, flags

import bpfree
from bpfree.data import images
from bpfree.models import resnet5

DATA = flags.DEFINE_string("data", "cifar10_jpeg", "an image set by name")
SAMPLES = flags.DEFINE_list("samples", ["10", "50", "100", "200"], "for each layer")
REPEATS = flags.DEFINE_integer("repeats", 4, "independent estimates")
STEPS = flags.DEFINE_integer("steps", 1000, "of backprop before the second look")
BATCH = flags.DEFINE_integer("batch", 100, "examples")
SIGMA = flags.DEFINE_float("sigma", 1e-3, "scale of the noise")


def look(loss_fn, params, batch):
    reports = {}
    for count in map(int, SAMPLES.value):
        estimator = bpfree.likelihood_ratio(
            loss_fn, num_samples=count, sigma=SIGMA.value, pairing="clean", layerwise=True
        )
        reports[count] = bpfree.diagnostics.measure(
            estimator, params, batch, repeats=REPEATS.value
        )
    fewest = min(reports)
    for name, first in reports[fewest].groups.items():
        cells = (
            f"{report.groups[name].cosine:>8.3f} ({first.cosine_of_mean(n / fewest):.3f})"
            for n, report in reports.items()
        )
        print(f"{name:<12}" + "".join(cells), flush=True)


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    data = trainer.on_device(images.load(name=DATA.value, preprocess="standardise"))
    model = resnet5.Model(data.num_classes)
    loss_fn = bpfree.supervised(model, optax.softmax_cross_entropy_with_integer_labels)
    batch = {k: v[: BATCH.value] for k, v in data.test.items()}
    print(f"{DATA.value}, sigma {SIGMA.value}, jax {jax.__version__}")
    print(f"{'layer':<12}" + "".join(f"{n:>16}" for n in SAMPLES.value))
    look(loss_fn, model.init(jax.random.key(0), batch["x"])["params"], batch)

    def make(key):
        return bpfree.backprop(loss_fn, seed=key)

    train = functools.partial(trainer.train, make, model, data, batch_size=BATCH.value)
    state = jax.jit(functools.partial(train, num_steps=STEPS.value))(0, jnp.float32(1e-3))
    print(f"after {STEPS.value} steps of backprop")
    look(loss_fn, state.params, batch)


if __name__ == "__main__":
    app.run(main)
