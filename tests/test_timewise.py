"""Weight gradients of loops at all steps at once, and noise drawn step by step."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

import bpfree
from bpfree.estimators import redrawn
from bpfree.models import recurrent
from bpfree.program import loops, passes, rewriting
from tests import problems, programs
from tests import statistics as gates
from tests.statistics import assert_close

PARAMS = problems.mlp_params()
KERNELS = {"rnn": 2, "gru": 6, "lstm": 8}


class Cells(nn.Module):
    cell: str

    @nn.compact
    def __call__(self, x):
        cell = recurrent.CELLS[self.cell](3, param_dtype=jnp.float64)
        y = nn.RNN(cell)(x, seq_lengths=jnp.array([4, 2, 1], jnp.int32))
        return nn.Dense(2, param_dtype=jnp.float64)(y.sum(1))


@pytest.mark.parametrize("cell", KERNELS)
def test_one_product_for_each_kernel_and_no_loop(cell, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (3, 4, 2), jnp.float64)
    batch = {"x": x, "label": jnp.arange(3) % 2}
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss_fn = bpfree.supervised(Cells(cell), cross_entropy)
    texts = []

    def pulled(params):
        _, values, pull = bpfree.pullback(loss_fn)(params, batch)
        signals = jax.tree.map(jnp.cos, values)
        texts.append(str(jax.make_jaxpr(pull)(signals)))
        return pull(signals)

    @jax.jit
    def both():
        params = Cells(cell).init(jax.random.key(1), x)["params"]
        apart = pulled(params)
        monkeypatch.setattr(loops, "scan", rewriting.plain_scan)
        return apart, pulled(params)

    with jax.numpy_dtype_promotion("standard"):
        assert_close(*both(), rtol=1e-12, atol=1e-14)
    assert "scan" not in texts[0] and "while" not in texts[0]
    assert texts[0].count("dot_general") == KERNELS[cell] + 1
    assert "scan" in texts[1]


def tied(params, h, x):
    h = programs.layer(params["w1"], x, "x") + programs.layer(params["w1"], h, "h")
    return h, h


def leaky(params, h, x):
    """The scale acts on the carry behind the node: a block that spans the steps."""
    h = params["scale"] * h / 2 + programs.layer(params["w1"], x, "x")
    return h, h


def scaled(params, h, x):
    """What the loop returns moves behind the node, and its carry does not."""
    h = programs.layer(params["w1"], x, "x") + programs.layer(params["w2"], h, "h")
    return h, params["scale"] * h


def without_node(params, h, x):
    h = jnp.tanh(bpfree.node(x @ params["w1"], "x") + h @ params["w2"])
    return h, h


def learned_start(params, batch):
    """The initial state is a parameter."""

    def step(h, x):
        return (programs.layer(params["w1"], x, "x") + h,) * 2

    start = jnp.broadcast_to(params["b1"][None], batch["t"].shape)
    _, hs = jax.lax.scan(step, start, batch["x"].swapaxes(0, 1))
    return ((hs.sum(0) - batch["t"]) ** 2).sum(1)


def loops_back(loss_fn):
    found = []

    def traced(params, batch):
        _, values, pull = bpfree.pullback(loss_fn)(params, batch)
        found.append(str(jax.make_jaxpr(pull)(values)))

    jax.eval_shape(traced, PARAMS, programs.SEQUENCES)
    return "scan" in found[0]


@pytest.mark.parametrize(
    "loss, back",
    [
        (functools.partial(programs.recurrent, body=tied), False),
        (functools.partial(programs.recurrent, body=scaled), False),
        (functools.partial(programs.recurrent, body=leaky), True),
        (functools.partial(programs.recurrent, body=without_node), True),
        (learned_start, True),
    ],
    ids=["tied", "scaled", "leaky", "without_node", "learned_start"],
)
def test_a_loop_runs_back_only_where_a_block_spans_the_steps(loss, back):
    def positional(params, batch):
        return loss(params, batch)

    assert_close(
        *problems.pulled_and_truth(positional, PARAMS, programs.SEQUENCES),
        rtol=1e-9,
        atol=1e-12,
    )
    assert loops_back(positional) == back


def test_steps_taken_as_apart_that_are_not_would_be_seen(monkeypatch):
    reached = loops._reached

    def nothing_carried(*args):
        return [], reached(*args)[1]

    monkeypatch.setattr(loops, "_reached", nothing_carried)
    loss = functools.partial(programs.recurrent, body=leaky)
    found, truth = problems.pulled_and_truth(
        lambda p, b: loss(p, b), PARAMS, programs.SEQUENCES
    )
    assert gates.relative_error(found, truth) > 0.01


# ------------------------------------------------------------- noise drawn step by step


@pytest.mark.parametrize(
    "loss, options",
    [
        (functools.partial(programs.recurrent, body=scaled), {"antithetic": True}),
        pytest.param(programs.scanned_layers, {}, marks=pytest.mark.slow),
        pytest.param(
            functools.partial(programs.recurrent, body=leaky, reverse=True),
            {},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["scaled", "layers", "leaky"],
)
def test_signals_made_at_the_steps_pull_as_arrays_do(loss, options, monkeypatch):
    def both(run, signals, starts):
        _, values, pull = passes.cut_vjp(run.program, run.args)
        arrays = {}
        for site in run.program.nodes:
            make = lambda signal, y: signal(y).astype(y.dtype)  # noqa: E731
            for _ in range(site.steps):
                make = jax.vmap(make)
            if site.name in signals:
                arrays[site.name] = make(signals[site.name], values[site.name])
        return in_segments(run, signals, starts), pull(arrays)

    in_segments = redrawn._pulled
    monkeypatch.setattr(redrawn, "_pulled", both)
    monkeypatch.setattr(redrawn, "SEGMENT", 3)  # of four steps: the last stands alone
    tx = bpfree.node_perturbation(
        lambda p, b: loss(p, b), num_samples=4, chunk_size=2, redraw=True, **options
    )

    @jax.jit
    def run(params, batch):
        key, state = jax.random.key(0), tx.init(params)
        return tx.estimator.estimate(key, params, batch, state).gradient

    assert_close(*run(PARAMS, programs.SEQUENCES), rtol=1e-9, atol=1e-12)


def gate_of_redrawn():
    loss = programs.recurrent_per_example
    tx = bpfree.node_perturbation(
        lambda p, b: loss(p, b), num_samples=16, sigma=1e-3, redraw=True
    )
    return gates.mean_gate(
        problems.estimates(tx, PARAMS, programs.SEQUENCES, repeats=512),
        problems.gradient(loss, PARAMS, programs.SEQUENCES),
    )


def test_redrawn_estimates_are_right_on_average():
    gate = gate_of_redrawn()
    assert gate.error < 0.08 and gate.passed, gate


@pytest.mark.slow
def test_other_noise_in_the_second_draw_would_be_seen(monkeypatch):
    def other(run, site, draw):
        nonlocal calls
        calls += 1
        return keys(run._replace(key=jax.random.fold_in(run.key, calls)), site, draw)

    keys, calls = redrawn._keys, 0
    monkeypatch.setattr(redrawn, "_keys", other)
    assert not gate_of_redrawn().passed


def memory(tx, params, batch):
    """XLA's scratch bytes of an update; nothing is run."""

    def update(params, batch):
        return tx.update(None, tx.init(params), params, batch=batch)[0]

    program = jax.jit(update).lower(params, batch).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_what_is_kept_of_all_steps():
    """The inputs, and little more, whatever the number of nodes and samples.

    1.5 arrays over time on JAX 0.10, 2.1 on 0.12, whose XLA keeps the inputs twice.
    """
    steps, size, width = 512, 16, 32
    params = problems.mlp_params(jnp.float32, width)
    x = jax.ShapeDtypeStruct((size, steps, width), jnp.float32)
    batch = {"x": x, "t": jax.ShapeDtypeStruct((size, width), jnp.float32)}
    tx = bpfree.node_perturbation(
        programs.recurrent_per_example, num_samples=8, chunk_size=1, redraw=True
    )
    assert memory(tx, params, batch) < 2.2 * x.size * 4


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            "rnn",
            marks=pytest.mark.xfail(
                jax.__version_info__ >= (0, 12), reason="inputs twice: .52"
            ),
        ),
        "gru",
        "lstm",
    ],
)
def test_memory_is_a_quarter_of_that_of_backprop_through_time(cell):
    model = recurrent.Model(2, cell=cell, hidden=64)
    x = jax.ShapeDtypeStruct((32, 1024, 64), jnp.float32)
    batch = {"x": x, "label": jax.ShapeDtypeStruct((32,), jnp.int32)}
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss_fn = bpfree.supervised(model, cross_entropy)
    with jax.numpy_dtype_promotion("standard"):
        params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        tx = bpfree.node_perturbation(loss_fn, num_samples=4, chunk_size=1, redraw=True)
        ours = memory(tx, params, batch)
        assert ours <= memory(bpfree.backprop(loss_fn), params, batch) / 4


@pytest.mark.parametrize(
    "options",
    [{"baseline": "leave_one_out"}, {"layerwise": True}, {"derivative": "jvp"}],
)
def test_what_needs_the_noise_kept(options):
    with pytest.raises(ValueError, match="redraw=True keeps one loss of every sample"):
        bpfree.node_perturbation(problems.mlp_loss, redraw=True, **options)
