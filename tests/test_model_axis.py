"""Parameters larger than a device: a mesh axis of the users' own passes through."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.estimators import weight_noise
from bpfree.hardware import kernels
from tests import problems
from tests.statistics import assert_close

# Columns of one matrix and rows of the next on two devices, as transformers are spread.
# A matrix has more entries than random words are joined for; 192 and 96 tell it whole.
SPECS = {
    "w1": PartitionSpec(None, "model"),
    "b1": PartitionSpec("model"),
    "w2": PartitionSpec("model", None),
    "b2": PartitionSpec(),
    "w3": PartitionSpec(None, "model"),
}
MATRICES = {"w1": (64, 192), "w2": (192, 96), "w3": (96, 32)}
WHOLE = [shape for shape in MATRICES.values() if np.prod(shape) > 2**13]


def loss_fn(params, batch):
    h = jnp.tanh(batch["x"] @ params["w1"] + params["b1"][None])
    h = jnp.tanh(h @ params["w2"] + params["b2"][None])
    return optax.softmax_cross_entropy_with_integer_labels(
        h @ params["w3"], batch["label"]
    )


def case():
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=s) / np.sqrt(s[0]) for k, s in MATRICES.items()}
    params |= {"b1": np.zeros(192), "b2": np.zeros(96)}
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    x = jnp.asarray(rng.normal(size=(8, 64)), jnp.float32)
    return params, {"x": x, "label": jnp.arange(8)}


PARAMS, BATCH = case()
ESTIMATORS = {
    "nodes": (bpfree.node_perturbation, {"sigma": 0.1}),
    "density": (bpfree.likelihood_ratio, {"sigma": 0.1, "pairing": "clean"}),
    "rank 1": (bpfree.weight_perturbation, {"sigma": 0.1, "rank": 1}),
    "dense": (bpfree.weight_perturbation, {"sigma": 0.1, "noise": "gaussian"}),
    "signs": (bpfree.weight_perturbation, {"sigma": 0.1}),
    "forward": (bpfree.forward_gradient, {}),
    "feedback": (
        bpfree.learned_feedback,
        {"sigma": 0.1, "example_batch": BATCH, "fit": problems.adam(1e-3)},
    ),
}


def spread():
    """(sharding of the samples, params, batch) over 2 x 2 x 2 devices."""
    names = ("sample", "data", "model")
    mesh = jax.make_mesh((2, 2, 2), names, axis_types=(AxisType.Auto,) * 3)
    at = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    params = {k: jax.device_put(v, at(*SPECS[k])) for k, v in PARAMS.items()}
    return at("sample"), params, jax.device_put(BATCH, at("data"))


def compiled(name, params, batch, sharding=None):
    make, options = ESTIMATORS[name]
    tx = make(loss_fn, num_samples=6, chunk_size=3, sharding=sharding, **options)
    chain = optax.chain(tx, problems.adam(1e-2))

    def step(params, state, batch):
        gradient = tx.update(None, state[0], params, batch=batch)[0]
        updates, state = chain.update(None, state, params, batch=batch)
        return gradient, optax.apply_updates(params, updates), state

    state = chain.init(params)
    return jax.jit(step).lower(params, state, batch).compile(), state


def exchanged(text):
    """Bytes of the largest exchange that is no sum."""
    found = [k.sent for k in kernels.read(text) if k.collective not in ("", "all-reduce")]
    return max(found, default=0)


def whole(text):
    """Matrices that a device has all of."""
    shapes = [",".join(map(str, shape)) for shape in WHOLE]
    return [s for s in shapes if re.search(rf"\[(\d+,)*{s}\]", text)]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_parameters_stay_where_they_are(name):
    """The estimate of one device, with the exchanges of inference and sums."""
    sharding, params, batch = spread()
    inference = jax.jit(loss_fn).lower(params, batch).compile()
    program, state = compiled(name, params, batch, sharding)
    assert exchanged(program.as_text()) <= exchanged(inference.as_text())
    assert not whole(program.as_text())
    found, moved, state = program(params, state, batch)
    for tree in (moved, state[1][0].mu, state[1][0].nu):
        assert jax.tree.all(jax.tree.map(_same_place, tree, params))
    one, its_state = compiled(name, PARAMS, BATCH)
    wanted = one(PARAMS, its_state, BATCH)[0]
    assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _same_place(a, b):
    return a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_replicated_noise_would_be_seen(monkeypatch):
    """The fault, planted: every device makes the noise of all parameters."""
    sharding, params, batch = spread()
    draw, mesh = weight_noise.draw, sharding.mesh

    def everywhere(*args):
        place = NamedSharding(mesh, PartitionSpec())
        return lax.with_sharding_constraint(draw(*args), place)

    monkeypatch.setattr(weight_noise, "draw", everywhere)
    assert whole(compiled("dense", params, batch, sharding)[0].as_text())
