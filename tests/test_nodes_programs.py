"""Nodes inside jit, vmap, scan and remat, in tied weights and on sharded arrays."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import bpfree
from bpfree.program import passes, tags
from bpfree.program.trace import trace
from tests import problems, programs
from tests import statistics as gates
from tests.statistics import assert_close

PARAMS = problems.mlp_params()


@pytest.mark.parametrize("loss, batch", programs.CASES, ids=programs.case_name)
def test_pullback_with_true_signals_is_the_gradient(loss, batch):
    def positional(params, batch):  # partials carry further parameters
        return loss(params, batch)

    pulled, truth = problems.pulled_and_truth(positional, PARAMS, batch)
    assert_close(pulled, truth, rtol=1e-9, atol=1e-12)
    assert truth["w1"].any()


@pytest.mark.parametrize("loss, batch", programs.CASES, ids=programs.case_name)
def test_passes_that_share_their_prefix_are_injections(loss, batch):
    """`perturbed` keeps what no node reaches; its losses are those of `inject`."""

    def positional(params, batch):
        return loss(params, batch)

    @jax.jit
    def both(params, batch):
        traced = trace(positional, params, batch)
        shapes = {site.name: site.shape for site in traced.nodes}
        deltas = {name: 0.3 + jnp.zeros(shape) for name, shape in shapes.items()}
        clean = positional(params, batch)
        noisy = traced.holding(passes.cut(traced, (params, batch))[1])
        shared = passes.perturbed(noisy, (params, batch))(deltas)
        return shared, bpfree.inject(positional)(params, batch, deltas)[0], clean

    shared, injected, clean = both(PARAMS, batch)
    assert_close(shared, injected, rtol=1e-12)
    assert not jnp.allclose(shared, clean)


def shapes_of(loss, batch):
    values = bpfree.record(lambda p, b: loss(p, b))(PARAMS, batch)[1]
    return {name: y.shape for name, y in values.items()}


def batch_axes_of(loss, batch):
    traced = trace(lambda p, b: loss(p, b), PARAMS, batch)
    return {site.name: site.batch_axis for site in traced.nodes}


@pytest.mark.parametrize(
    "loss, batch, shapes, axes",
    [
        (
            programs.per_example,
            programs.BATCH,
            {"h": (5, 3), "y": (5, 3)},
            {"h": 0, "y": 0},
        ),
        (
            programs.shared_value,
            programs.BATCH,
            {"w": (3, 3), "y": (5, 3)},
            {"w": None, "y": 0},
        ),
        (programs.recurrent_per_example, programs.SEQUENCES, {"h": (4, 4, 3)}, {"h": 1}),
        (programs.scanned_layers, programs.SEQUENCES, {"h": (2, 4, 4, 3)}, {"h": 2}),
    ],
    ids=programs.case_name,
)
def test_shapes_and_batch_axes_of_the_whole_program(loss, batch, shapes, axes):
    assert shapes_of(loss, batch) == shapes
    assert batch_axes_of(loss, batch) == axes


def test_vmap_over_weights_keeps_the_batch_axis():
    values = bpfree.record(programs.heads)(PARAMS, programs.BATCH)[1]
    axes = batch_axes_of(programs.heads, programs.BATCH)
    for name in ("h", "y"):
        assert sorted(values[name].shape) == [2, 3, 5]
        assert values[name].shape[axes[name]] == 5


def test_scanned_values_and_deltas_have_a_leading_time_axis():
    program = lambda p, b: programs.recurrent(p, b)  # noqa: E731
    values = bpfree.record(program)(PARAMS, programs.SEQUENCES)[1]
    xs = programs.SEQUENCES["x"].swapaxes(0, 1)
    assert_close(values["x_part"], xs @ PARAMS["w1"], rtol=1e-12)
    delta = jnp.zeros((programs.STEPS, programs.SIZE, 3)).at[2, 1, 0].set(0.5)
    moved = bpfree.inject(program)(PARAMS, programs.SEQUENCES, {"x_part": delta})[1]
    changed = jnp.abs(moved["h_part"] - values["h_part"]).sum(2) > 1e-9
    assert changed.tolist() == (jnp.zeros((4, 4)).at[3, 1].set(1.0) > 0).tolist()


def estimated(loss, batch, make=bpfree.node_perturbation):
    tx = make(lambda p, b: loss(p, b), num_samples=32, sigma=1e-3)
    gate = gates.mean_gate(
        problems.estimates(tx, PARAMS, batch, repeats=1024),
        problems.gradient(loss, PARAMS, batch),
    )
    assert gate.error < 0.04, gate
    return gate


@pytest.mark.parametrize(
    "loss", [programs.recurrent, programs.recurrent_per_example, programs.scanned_layers]
)
def test_credit_in_time_with_as_many_steps_as_examples(loss):
    assert estimated(loss, programs.SEQUENCES).passed


@pytest.mark.parametrize(
    "loss",
    [programs.per_example_behind, programs.heads, programs.tied, programs.shared_value],
)
def test_credit_in_straight_code(loss):
    assert estimated(loss, programs.BATCH).passed


@pytest.mark.parametrize("make", [bpfree.node_perturbation, bpfree.likelihood_ratio])
def test_credit_of_one_loss_for_the_batch(make):
    assert estimated(programs.one_loss, programs.BATCH, make).passed


def test_credit_of_a_shared_value_in_the_noisy_pairing():
    gate = estimated(programs.shared_value, programs.BATCH, bpfree.likelihood_ratio)
    assert gate.passed


def test_credit_along_time_instead_of_examples_would_be_seen(monkeypatch):
    monkeypatch.setattr(
        tags, "_stacked", lambda site, n: site._replace(shape=(n, *site.shape))
    )
    assert not estimated(programs.recurrent, programs.SEQUENCES).passed


def test_sharded_arrays():
    """The batch over eight devices under jit: the same values and the same pull."""
    batch = problems.mlp_batch(16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def run(params, batch):
        losses, values, pull = bpfree.pullback(problems.mlp_loss)(params, batch)
        moved, _ = bpfree.inject(problems.mlp_loss)(params, batch, {"h": values["y"]})
        return losses, values, pull({"h": values["y"]}), moved

    sharded = run(PARAMS, jax.device_put(batch, rows))
    assert sharded[0].sharding.is_equivalent_to(rows, 1)
    assert_close(sharded, run(PARAMS, batch), rtol=1e-10, atol=1e-12)


def test_of_nested_vmaps_the_outermost_maps_the_batch():
    """As many patches as examples: only the order of the vmaps tells them apart."""

    def loss(params, batch):
        def patch(x):
            return jnp.tanh(bpfree.node(x @ params["w1"], "h"))

        def one(x):
            return (jax.vmap(patch)(x) ** 2).sum()

        return jax.vmap(one)(batch["x"])

    traced = trace(loss, PARAMS, programs.SEQUENCES)
    assert traced.nodes[0].batch_axis == 0
    assert estimated(loss, programs.SEQUENCES).passed
