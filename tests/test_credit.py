"""Credit rules keep the expectation and lower the variance, and wrong ones are seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bpfree
from bpfree.program.tags import Site
from bpfree.sampling.rules import per_example
from tests import problems
from tests.statistics import LIMIT, assert_close, flat, mean_gate, variance_z

SIZE = STEPS = 4  # as many steps as examples: only the axes tell them apart
PARAMS = problems.mlp_params()
KEYS = jax.random.split(jax.random.key(5), 3)
SEQUENCES = {
    "start": jax.random.normal(KEYS[0], (SIZE, 3), jnp.float64),
    "x": jax.random.normal(KEYS[1], (SIZE, STEPS, 3), jnp.float64),
    "t": jax.random.normal(KEYS[2], (SIZE, STEPS, 3), jnp.float64),
}


def sequence_losses(params, batch, reverse=False):
    """(B, T): a recurrent net with a node outside its loop."""
    start = jnp.tanh(bpfree.node(batch["start"] @ params["w2"], "start"))

    def step(h, now):
        x, t = now
        h = jnp.tanh(bpfree.node(x @ params["w1"] + h @ params["w2"], "h"))
        return h, ((h * params["scale"] - t) ** 2).sum(1)

    time_first = (batch["x"].swapaxes(0, 1), batch["t"].swapaxes(0, 1))
    return lax.scan(step, start, time_first, reverse=reverse)[1].T


def sequence_sum(params, batch):
    return sequence_losses(params, batch).mean(1)


ADJACENCY = np.eye(6, k=1) + np.eye(6, k=-1)  # a path of six graph nodes
GRAPH = {
    "x": jax.random.normal(KEYS[0], (6, 3), jnp.float64),
    "t": jax.random.normal(KEYS[1], (6, 3), jnp.float64),
}
HOPS = {"h": bpfree.within_hops(ADJACENCY, 1), "y": bpfree.within_hops(ADJACENCY, 0)}


def graph_losses(params, batch):
    """(N,): two layers of message passing."""
    reads = jnp.asarray((ADJACENCY + np.eye(6)) / 3)
    h = jnp.tanh(bpfree.node(reads @ batch["x"] @ params["w1"], "h"))
    y = bpfree.node(reads @ h @ params["w2"], "y")
    return ((y * params["scale"] - batch["t"]) ** 2).sum(1)


def graph_loss(params, batch):
    return graph_losses(params, batch).mean()


def estimates(loss_fn, batch, make=bpfree.node_perturbation, **options):
    options = {"num_samples": 8, "sigma": 1e-3} | options
    if make is bpfree.forward_gradient:
        del options["sigma"]
    return problems.estimates(make(loss_fn, **options), PARAMS, batch, repeats=2048)


def variance(estimates):
    return flat(estimates, repeats=True).var(0).sum()


# ------------------------------------------------------- same expectation, less variance


@functools.cache
def causal(**options):
    return estimates(sequence_losses, SEQUENCES, credit=bpfree.causal(), **options)


@functools.cache
def uncausal():
    return estimates(sequence_sum, SEQUENCES)


def test_causality_keeps_the_expectation_and_lowers_the_variance():
    truth = problems.gradient(sequence_sum, PARAMS, SEQUENCES)
    gate = mean_gate(causal(), truth)
    assert gate.passed and gate.error < 0.02, gate
    assert mean_gate(uncausal(), truth).passed
    assert variance_z(uncausal(), causal(), ratio=1.0) > LIMIT


@pytest.mark.parametrize(
    "make, options",
    [
        (bpfree.likelihood_ratio, {}),
        (bpfree.node_perturbation, {"baseline": "leave_one_out"}),
        (bpfree.forward_gradient, {}),
    ],
)
def test_causality_of_other_estimators(make, options):
    truth = problems.gradient(sequence_sum, PARAMS, SEQUENCES)
    gate = mean_gate(causal(make=make, **options), truth)
    assert gate.passed and gate.error < 0.02, gate


def test_causality_of_a_scan_that_runs_backwards():
    loss_fn = functools.partial(sequence_losses, reverse=True)
    truth = problems.gradient(lambda p, b: loss_fn(p, b), PARAMS, SEQUENCES)
    for reverse in (True, False):
        rule = bpfree.causal(reverse=reverse)
        found = estimates(lambda p, b: loss_fn(p, b), SEQUENCES, credit=rule)
        assert mean_gate(found, truth).passed == reverse


def past(centred, node):
    """Planted: losses up to t, without that of t."""
    return bpfree.causal(reverse=True)(
        jnp.pad(centred, ((0, 0),) * 2 + ((1, 0),))[..., :-1], node
    )


def strictly_later(centred, node):
    """Planted: the loss at t itself forgotten."""
    later = jnp.pad(centred, ((0, 0), (0, 0), (0, 1)))[..., 1:]
    return (
        bpfree.causal()(later, node) if node.name == "h" else per_example(centred, node)
    )


def exchanged(centred, node):
    """Planted: time and batch exchanged; both are four long."""
    return bpfree.causal()(centred.swapaxes(1, 2), node)


@pytest.mark.parametrize("rule", [past, strictly_later, exchanged])
def test_wrong_rules_in_time_are_seen(rule):
    truth = problems.gradient(sequence_sum, PARAMS, SEQUENCES)
    found = estimates(sequence_losses, SEQUENCES, credit=rule)
    assert not mean_gate(found, truth).passed


def test_locality_keeps_the_expectation_and_lowers_the_variance():
    truth = problems.gradient(graph_loss, PARAMS, GRAPH)
    near = estimates(graph_losses, GRAPH, credit=HOPS)
    whole = estimates(graph_loss, GRAPH)
    for found in (near, whole):
        gate = mean_gate(found, truth)
        assert gate.passed and gate.error < 0.03, gate
    assert variance_z(whole, near, ratio=1.0) > LIMIT


def test_too_few_hops_are_seen():
    rule = bpfree.within_hops(ADJACENCY, 0)
    truth = problems.gradient(graph_loss, PARAMS, GRAPH)
    assert not mean_gate(estimates(graph_losses, GRAPH, credit=rule), truth).passed


def test_without_a_rule_all_losses_of_the_graph_answer():
    """Messages make examples meet, which is read: the nodes are shared by the batch."""
    truth = problems.gradient(graph_loss, PARAMS, GRAPH)
    assert mean_gate(estimates(graph_losses, GRAPH), truth).passed


def test_a_batch_of_graphs():
    """Losses (B, N), values (B, N, d), on a graph whose edges point one way."""
    one_way = np.eye(4, k=-1)  # m reads m - 1
    batch = {"x": SEQUENCES["x"], "t": SEQUENCES["t"]}

    def losses(params, batch):
        reads = jnp.asarray(one_way + np.eye(4))
        h = jnp.tanh(bpfree.node(batch["x"] @ params["w1"], "h"))
        y = bpfree.node(jnp.einsum("mn,bnd->bmd", reads, h) @ params["w2"], "y")
        return ((y - batch["t"]) ** 2).sum(2)

    truth = problems.gradient(losses, PARAMS, batch)
    rules = {"h": bpfree.within_hops(one_way, 1), "y": bpfree.within_hops(one_way, 0)}
    assert mean_gate(estimates(losses, batch, credit=rules), truth).passed
    rules["h"] = bpfree.within_hops(one_way.T, 1)  # planted: edges the wrong way round
    assert not mean_gate(estimates(losses, batch, credit=rules), truth).passed


# ---------------------------------------------------------------- the rules by themselves


def site(shape, batch_axis):
    return Site("n", "node", batch_axis, shape, jnp.float32)


def test_the_default_places_losses_at_the_batch_axis():
    centred = jnp.arange(6.0).reshape(2, 3)
    for shape, axis in [((3, 5), 0), ((7, 3, 5), 1), ((5, 3), 1)]:
        weights = per_example(centred, site(shape, axis))
        expected = [2, *[1] * len(shape)]
        expected[1 + axis] = 3
        assert weights.shape == tuple(expected)
        assert_close(weights.ravel(), centred.ravel(), rtol=0.0)
    shared = per_example(centred, site((5,), None))
    assert_close(shared, jnp.asarray([[3.0], [12.0]]), rtol=0.0)
    assert per_example(jnp.ones(2), site((3, 5), 0)).shape == (2, 1, 1)


def test_causal_sums_the_losses_from_now_on():
    losses = jnp.asarray([[[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]]])  # (1, B=2, T=3)
    scanned = bpfree.causal()(losses, site((3, 2, 5), 1))
    assert scanned[0, :, :, 0].tolist() == [[7, 70], [6, 60], [4, 40]]
    behind = bpfree.causal(axis=1)(losses, site((2, 3, 5), 0))
    assert behind[0, :, :, 0].tolist() == [[7, 6, 4], [70, 60, 40]]
    outside = bpfree.causal()(losses, site((2, 5), 0))
    assert outside.ravel().tolist() == [7, 70]


@pytest.mark.parametrize(
    "window, reverse, expected",
    [
        (1, False, [1, 2, 4]),
        (2, False, [3, 6, 4]),
        (2, True, [1, 3, 6]),
        (3, False, [7, 6, 4]),
        (9, True, [1, 3, 7]),
    ],
)
def test_a_window_leaves_later_losses_out(window, reverse, expected):
    losses = jnp.asarray([[[1.0, 2.0, 4.0]]], jnp.float32)
    rule = bpfree.causal(reverse=reverse, window=window)
    assert rule(losses, site((3, 1, 5), 1)).ravel().tolist() == expected


def steps_apart(params, batch):
    """No step reaches another: the loss of the step itself is all that answers."""
    y = bpfree.node(batch["x"] @ params["w1"], "y")
    return ((jnp.tanh(y) - batch["t"]) ** 2).sum(2)


def test_a_window_of_one_step_is_exact_where_steps_are_apart_and_biased_elsewhere():
    for loss_fn, axis, exact in ((steps_apart, 1, True), (sequence_losses, 0, False)):
        rule = bpfree.causal(axis, window=1)
        truth = problems.gradient(loss_fn, PARAMS, SEQUENCES)
        found = estimates(loss_fn, SEQUENCES, credit=rule)
        assert mean_gate(found, truth).passed == exact


def test_within_hops_counts_edges():
    """Losses 1, 10, 100, ... on a path: digits show which were added up."""
    digits = jnp.asarray([[1.0, 1e1, 1e2, 1e3, 1e4, 1e5]])
    for hops, expected in [(0, 100), (1, 1110), (2, 11111), (3, 111111), (9, 111111)]:
        weights = bpfree.within_hops(ADJACENCY, hops)(digits, site((6, 3), 0))
        assert int(weights[0, 2, 0]) == expected


def test_layerwise_samples_take_rules_by_name():
    truth = problems.gradient(graph_loss, PARAMS, GRAPH)
    found = estimates(graph_losses, GRAPH, credit=HOPS, layerwise=True)
    assert mean_gate(found, truth).passed


@pytest.mark.parametrize(
    "loss_fn, rule, message",
    [
        (sequence_losses, None, r"Losses \(B, T\).*need an estimator with credit="),
        (sequence_sum, bpfree.causal(), r"bpfree.causal needs losses of shape \(B, T\)"),
        (sequence_losses, bpfree.causal(axis=2), "axis 2 is not the 4 of the losses"),
        (sequence_losses, bpfree.causal(axis=9), "axis 9 is not the 4"),
        (sequence_losses, {"g": bpfree.causal()}, r"unknown nodes \['g'\].*'h'"),
        (sequence_losses, lambda c, node: c.sum(2), "must broadcast to"),
        (graph_losses, bpfree.within_hops(np.eye(5), 1), "on the N = 5 nodes"),
    ],
)
def test_misuse_is_a_clear_error(loss_fn, rule, message):
    batch = GRAPH if loss_fn is graph_losses else SEQUENCES
    tx = bpfree.node_perturbation(loss_fn, num_samples=4, credit=rule)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: tx.update(None, tx.init(p), p, batch=batch), PARAMS)


@pytest.mark.parametrize(
    "adjacency, hops, message",
    [(np.ones((2, 3)), 1, r"must be \(N, N\)"), (np.eye(3), -1, "hops=-1")],
)
def test_a_graph_that_is_none(adjacency, hops, message):
    with pytest.raises(ValueError, match=message):
        bpfree.within_hops(adjacency, hops)


def test_a_window_of_nothing():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        bpfree.causal(window=0)


# ---------------------------------------------------------------------- rows in segments

GRAPH_OF_NODE = np.array([0, 0, 0, 1, 1, 2, 2, 2])
EDGES = np.array([[0, 1, 2, 1, 3, 4, 5, 6, 7], [1, 2, 0, 0, 4, 3, 6, 7, 5]])
BATCHED = {
    "x": jax.random.normal(KEYS[0], (8, 3), jnp.float64),
    "senders": EDGES[0],
    "receivers": EDGES[1],
    "graph": GRAPH_OF_NODE,
    "t": jax.random.normal(KEYS[1], (3, 3), jnp.float64),
}
BY_GRAPH = bpfree.by_segment(
    lambda batch: batch["graph"], lambda batch: batch["graph"][batch["senders"]]
)


def batched_graphs(params, batch):
    """(G,): messages on edges, then nodes, then a sum over each graph."""
    message = jnp.tanh(batch["x"][batch["senders"]] @ params["w1"])
    h = jax.ops.segment_sum(message, batch["receivers"], num_segments=8)
    y = jnp.tanh(h @ params["w2"])
    pooled = jax.ops.segment_sum(y, batch["graph"], num_segments=3) * params["scale"]
    return ((pooled - batch["t"]) ** 2).sum(1)


def test_rows_of_a_segment_answer_to_its_loss():
    truth = jax.grad(lambda p: batched_graphs(p, BATCHED).mean())(PARAMS)
    options = {"num_samples": 16, "sigma": 1e-3}
    alone = bpfree.node_perturbation(batched_graphs, credit=BY_GRAPH, **options)
    estimates = problems.estimates(alone, PARAMS, BATCHED, repeats=512)
    gate = mean_gate(estimates, truth)
    assert gate.passed and gate.error < 0.05, gate


def test_rows_with_the_loss_of_another_segment_are_seen():
    """The planted fault."""
    wrong = bpfree.by_segment(
        lambda batch: (batch["graph"] + 1) % 3,
        lambda batch: batch["graph"][batch["senders"]],
    )
    truth = jax.grad(lambda p: batched_graphs(p, BATCHED).mean())(PARAMS)
    tx = bpfree.node_perturbation(
        batched_graphs, credit=wrong, num_samples=16, sigma=1e-3
    )
    estimates = problems.estimates(tx, PARAMS, BATCHED, repeats=512)
    assert not mean_gate(estimates, truth).passed


@pytest.mark.parametrize(
    "ids, message",
    [
        ((), "takes functions of the batch"),
        ((lambda batch: batch["x"],), "whole numbers"),
        ((lambda batch: batch["graph"], lambda batch: batch["graph"]), "tell all kinds"),
        ((lambda batch: np.arange(3),), "tell all kinds"),
    ],
)
def test_segments_that_say_too_little(ids, message):
    with pytest.raises(ValueError, match=message):
        tx = bpfree.node_perturbation(batched_graphs, credit=bpfree.by_segment(*ids))
        jax.eval_shape(lambda p: tx.update(None, tx.init(p), p, batch=BATCHED)[0], PARAMS)
