"""The launcher with `decorrelate`, and the convolutional and residual models."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpfree
from bpfree import decorrelation
from bpfree.models import mlp, resnet, vgg
from bpfree.training import chain, fit, job, steps
from bpfree.training import config as settings
from bpfree.training.loop import TrainingFault, _check_fault

CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """Optax's own Adam mixes int32 and int64 under x64; strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def config_of(name, arg):
    path = Path(__file__).parent.parent / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg).to_dict()


def small(arg):
    config = config_of("decorrelated_mlp", arg)
    config["data"] = {"name": "digits"}
    config["model"]["hidden"] = (8,)
    return config


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits_and_logs_the_losses(tmp_path):
    config = config_of("decorrelated_mlp", "smoke")
    config["num_steps"] = 4
    config["decorrelation"]["every"] = 2
    config["decorrelation"]["rule"] = ("decorrelation.dbp", {"kappa": 0.0})
    whole = fit(config, tmp_path / "whole")
    fit(config, tmp_path / "parts", stop_after=3)
    resumed = fit(config, tmp_path / "parts")
    assert resumed.resumed_from == 3

    def arrays(result):
        trees = (result.params, result.opt_state[1])
        return [np.asarray(leaf) for leaf in jax.tree.leaves(trees)]

    for a, b in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    log = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert "decorrelation/Dense_0/kernel" in log


def test_the_launcher_tells_of_foreign_edits_and_metrics():
    class Manager:
        def latest_step(self):
            return None

    made = job.prepare(settings.read(small("dbp")))
    state = steps.init_state(made.task, made.params, made.model_state)
    _check_fault(made, Manager(), state)
    names = set(bpfree.metrics(state.opt_state))
    assert names == {f"decorrelation/Dense_{i}/kernel" for i in range(2)}
    estimator, decorrelated = state.opt_state
    edited = decorrelated._replace(edited=jnp.int32(3))
    with pytest.raises(TrainingFault, match="step 3: a decorrelated kernel"):
        _check_fault(made, Manager(), state._replace(opt_state=(estimator, edited)))


@pytest.mark.parametrize("arg", ["dnp", "dinp", "danp", "dlr"])
def test_variants_of_the_mlp_can_be_built(arg):
    made = settings.read(small(arg))
    loss_fn = bpfree.supervised(mlp.Model(10, hidden=(8,)), CROSS_ENTROPY)
    batch = {"x": jnp.zeros((4, 16)), "label": jnp.zeros(4, jnp.int32)}
    params = jax.eval_shape(
        mlp.Model(10, hidden=(8,)).init, jax.random.key(0), batch["x"]
    )
    built = chain.build(made.chain, made.sections, loss_fn, 0, batch)
    chain.check(built, params["params"], batch)


_SLOW = [
    pytest.param(arg, marks=pytest.mark.slow) for arg in ("resnet18", "resnet50_dbp")
]


@pytest.mark.parametrize("arg", ["convnet_dbp", "resnet50", *_SLOW])
def test_the_cifar_variants_run_dry(arg):
    """One update of the whole chain, traced at full size: nothing is computed."""
    config = config_of("dbp_cifar10", arg)
    entries = {k: v for k, v in config["model"].items() if k != "name"}
    module = {"vgg": vgg, "resnet": resnet}[config["model"]["name"]]
    model = module.Model(10, **entries)
    x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    batch = {"x": x, "label": jax.ShapeDtypeStruct((4,), jnp.int32)}
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape)))
    params, mutable = variables["params"], tuple(set(variables) - {"params"})
    batch["state"] = {name: variables[name] for name in mutable}
    loss_fn = bpfree.supervised(model, CROSS_ENTROPY, mutable=mutable, train=True)
    options = dict(config["decorrelation"], inner=optax.adam(1e-3))
    if not isinstance(options["rule"], str):
        options["rule"] = decorrelation.dbp(**options["rule"][1])
    tx = optax.chain(
        bpfree.backprop(loss_fn, example_batch=batch),
        bpfree.decorrelate(loss_fn=loss_fn, example_batch=batch, **options),
    )

    def step(params, batch):
        return tx.update(params, tx.init(params), params, batch=batch)

    updates, state = jax.eval_shape(step, params, batch)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    layers = state[1].layers
    kernels = sum(len(jnp.shape(p)) > 1 for p in jax.tree.leaves(params))
    assert len(layers) == kernels
    assert max(s.matrix.shape[-1] for s in layers.values()) <= 256


# ------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("layers", "width", "stem", "classes", "count", "shortcuts"),
    [
        (18, 64, "imagenet", 1000, 11_689_512, 3),
        (20, 16, "cifar", 10, 272_474, 2),  # with projections at the two shortcuts
        (50, 64, "imagenet", 1000, 25_557_032, 4),
    ],
)
def test_the_networks_are_the_published_ones(
    layers, width, stem, classes, count, shortcuts
):
    """Parameters, and the kernels that give the nets their names."""
    x = jnp.zeros((1, 64, 64, 3))

    def leaves(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        return jax.tree.leaves(shapes)

    model = resnet.Model(classes, layers=layers, width=width, stem=stem)
    assert sum(p.size for p in leaves(model)) == count
    kernels = [
        p for p in leaves(resnet.Model(10, layers=layers, norm="none")) if p.ndim > 1
    ]
    assert len(kernels) == layers + shortcuts


@pytest.mark.parametrize(
    "model",
    [
        vgg.Model(3, stages=((4, 4), (6,)), pool="max"),
        vgg.Model(3, stages=((4, 4), (6,)), norm="batch"),
        resnet.Model(3, width=2, norm="none"),
    ],
    ids=["max", "batch", "resnet"],
)
def test_models_map_images_to_logits(model):
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    logits = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(1), x)[0], x)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (vgg.Model(3, pool="mean"), "pool='mean'"),
        (resnet.Model(3, layers=34), r"layers=34 is unknown.*\(18, 20, 50\)"),
        (resnet.Model(3, stem="large"), "stem='large' is unknown"),
    ],
)
def test_unknown_options(model, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
