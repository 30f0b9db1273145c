"""One node perturbed at a time: the same gradient, from what stands behind the node."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpfree
from bpfree.estimators.derivative import linearized
from bpfree.program import passes
from bpfree.program.singly import singly
from bpfree.program.trace import trace
from tests import problems, programs
from tests import statistics as gates

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)
SIGMA = 0.4


def passes_gate(estimates, truth, **options):
    gate = gates.mean_gate(estimates, truth, **options)
    assert gate.passed and gate.error < 0.02, gate


# --------------------------------------------------------------------- the estimate


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": {"h": 12, "y": 4}, "antithetic": True},
        {"num_samples": {"h": 8, "y": 24}, "baseline": "leave_one_out"},
        {"num_samples": 16, "derivative": "jvp"},
    ],
    ids=["pairs", "leave_one_out", "jvp"],
)
def test_the_estimate_is_the_gradient(options):
    """The default options: by the checks of the contract, with `trains` of the table."""
    tx = bpfree.node_perturbation(
        problems.mlp_loss, sigma=1e-3, layerwise=True, **options
    )
    passes_gate(problems.estimates(tx, PARAMS, BATCH, repeats=1024), TRUTH)


def smoothed_at(node, repeats, samples=64):
    """Estimates of the gradient of the loss with noise at `node` alone, by autodiff."""
    injected = bpfree.inject(problems.mlp_loss)

    def loss(params, key):
        noise = jax.random.normal(key, BATCH["t"].shape, jnp.float64)
        return injected(params, BATCH, {node: SIGMA * noise})[0].mean()

    def one(key):
        keys = jax.random.split(key, samples)
        mean = lambda p: jax.vmap(loss, (None, 0))(p, keys).mean()  # noqa: E731
        return jax.grad(mean)(PARAMS)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(11), repeats))


def test_every_block_descends_the_loss_smoothed_at_its_own_node():
    """The likelihood ratio at large sigma; behind the last node, the mean of them."""
    tx = bpfree.likelihood_ratio(
        problems.mlp_loss, num_samples=32, sigma=SIGMA, layerwise=True
    )
    estimates = problems.estimates(tx, PARAMS, BATCH, repeats=2048)
    h, y = (smoothed_at(node, repeats=1024) for node in ("h", "y"))
    truth = {
        "w1": h["w1"],
        "b1": h["b1"],
        "w2": y["w2"],
        "b2": y["b2"],
        "scale": (h["scale"] + y["scale"]) / 2,
    }
    passes_gate(estimates, truth, truth_repeats=True)


def test_the_variance_is_less_than_of_all_nodes_at_once():
    """Of as many samples of every node: what the other node adds is gone."""
    all_at_once, apart = (
        problems.estimates(
            bpfree.node_perturbation(
                problems.mlp_loss, num_samples=8, sigma=1e-3, layerwise=layerwise
            ),
            PARAMS,
            BATCH,
            repeats=512,
        )
        for layerwise in (False, True)
    )
    assert gates.variance_z(all_at_once, apart, ratio=1.0) > gates.LIMIT


def test_the_chunk_size_does_not_change_the_estimate():
    """3 divides no count; 1 takes the way without `vmap`."""
    one, three = (
        problems.estimates(
            bpfree.node_perturbation(
                problems.mlp_loss,
                num_samples={"h": 5, "y": 8},
                sigma=0.1,
                chunk_size=chunk_size,
                layerwise=True,
            ),
            PARAMS,
            BATCH,
            repeats=1,
        )
        for chunk_size in (1, 3)
    )
    gates.assert_close(one, three, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ what is evaluated


@functools.partial(jax.jit, static_argnums=0)
def node_by_node(loss, params, batch):
    """Per node, five times: (L with one delta by `perturbed`, by `inject`; the same to
    first order, by `linearized`, by backprop; L of the clean pass)."""
    program = trace(loss, params, batch)
    args = (params, batch)
    injected = lambda deltas: bpfree.inject(loss)(params, batch, deltas)[0]  # noqa: E731
    found = {}
    for site in program.nodes:
        key = jax.random.key(3)
        delta = {site.name: 0.1 * jax.random.normal(key, site.shape, jnp.float32)}
        losses = passes.perturbed(program, args, [site.name])
        exact = jax.tree.map(lambda d: d.astype(jnp.float64), delta)
        zeros = jax.tree.map(jnp.zeros_like, exact)
        gradient = jax.grad(lambda d: injected(d).sum())(zeros)[site.name]
        found[site.name] = (
            losses(delta),
            injected(delta),
            linearized(losses, [site])(delta).sum(),
            (gradient * exact[site.name]).sum(),
            injected({}),
        )
    return found


NESTED = [
    (programs.nested_jit, BATCH),
    (programs.remat, BATCH),
    (programs.heads, BATCH),
    (programs.shared_value, BATCH),
    (programs.recurrent, programs.SEQUENCES),
]


@pytest.mark.parametrize("loss, batch", NESTED, ids=programs.case_name)
def test_the_suffix_is_the_whole_pass_of_any_program(loss, batch):
    for name, values in node_by_node(loss, PARAMS, batch).items():
        suffix, whole, first_order, truth, clean = values
        gates.assert_close(suffix, whole, rtol=1e-12)
        np.testing.assert_allclose(first_order, truth, rtol=1e-6, err_msg=name)
        assert jnp.any(suffix != clean), name


def branches(a, b, c):
    """Arguments meet in any order, inside `jit` too; the last one moves no output."""
    h = jnp.tanh(BATCH["t"] + b)
    k = jax.jit(lambda h, c: h * 2 + c)(BATCH["t"], 0 * c)
    return ((h + a) * (h + jax.lax.stop_gradient(k - k)) + a).sum(1)


@pytest.mark.parametrize("linear", [False, True])
def test_points_at_which_one_argument_moves(linear):
    shape = (3, *BATCH["t"].shape)
    points = [jax.random.normal(jax.random.key(i), shape, jnp.float64) for i in range(3)]
    zeros = [jnp.zeros_like(point[0]) for point in points]
    fn = jax.linearize(branches, *zeros)[1] if linear else branches
    found = jax.jit(singly(fn, zeros, linear))(*points)
    for i, point in enumerate(points):
        alone = lambda x, i=i: fn(*zeros[:i], x, *zeros[i + 1 :])  # noqa: E731
        gates.assert_close(found[i], jax.vmap(alone)(point), rtol=1e-12)


LAYERS, WIDTH, SIZE = 4, 128, 32
STACK = [jnp.full((WIDTH, WIDTH), 0.01 * (i + 1), jnp.float32) for i in range(LAYERS)]
INPUTS = jnp.ones((SIZE, WIDTH), jnp.float32)
PRODUCT = 2 * SIZE * WIDTH * WIDTH


def stack(weights, x):
    for i, w in enumerate(weights):
        x = bpfree.node(jnp.tanh(x) @ w, f"layer{i}")
    return (x**2).sum(1)


def products(function, *args) -> float:
    """FLOPs of the compiled program in products of one layer, loops counted once."""
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.cost_analysis()["flops"] / PRODUCT


def update(each):
    """With a chunk of so many samples of each node."""
    options = {"num_samples": 16, "layerwise": True, "chunk_size": LAYERS * each}
    tx = bpfree.node_perturbation(stack, **options)
    return lambda w, x: tx.update(None, tx.init(w), w, batch=x)[0]


@pytest.mark.usefixtures("optimized")
def test_layerwise_costs_half_of_full_passes():
    """A sample of each of L nodes: suffixes of L (L - 1) / 2 products, not L passes of L.

    The rest of an update is the clean pass and the pull: no prefix is computed again.
    """
    full = LAYERS * products(stack, STACK, INPUTS)
    four, eight = (products(update(each), STACK, INPUTS) for each in (4, 8))
    sample = (eight - four) / 4
    assert LAYERS * (LAYERS - 1) / 2 < sample < 0.5 * full
    assert four - 4 * sample < 1.1 * 2 * LAYERS


# ------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_samples": {"h": 4, "y": 4}}, "per node needs layerwise=True"),
        ({"num_samples": {}, "layerwise": True}, "names no node"),
        ({"num_samples": {"h": 0, "y": 4}, "layerwise": True}, "num_samples=0 must be"),
        ({"derivative": "vjp"}, "derivative='vjp' is unknown"),
        ({"derivative": "jvp", "baseline": "none"}, "takes no other baseline"),
        ({"derivative": "jvp", "antithetic": True}, "no antithetic pairs"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        bpfree.node_perturbation(problems.mlp_loss, **options)


@pytest.mark.parametrize("counts", [{"h": 4}, {"h": 4, "y": 4, "z": 4}])
def test_counts_name_the_nodes(counts):
    tx = bpfree.node_perturbation(problems.mlp_loss, num_samples=counts, layerwise=True)
    with pytest.raises(ValueError, match=r"the nodes are \['h', 'y'\]"):
        jax.eval_shape(lambda: tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH))


def test_a_node_without_a_derivative_is_no_silent_zero():
    def loss(params, batch):
        h = jnp.sign(bpfree.node(batch["x"] @ params["w1"], "h"))
        return (bpfree.node(h @ params["w2"], "y") ** 2).sum(1)

    tx = bpfree.node_perturbation(loss, derivative="jvp")
    params = {k: PARAMS[k] for k in ("w1", "w2")}
    with pytest.raises(ValueError, match="reaches the losses from node 'h'"):
        jax.eval_shape(lambda: tx.update(None, tx.init(params), params, batch=BATCH))
