"""Weight gradients of scanned layers at all steps at once, and noise drawn step by step."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

import bpfree
from bpfree import _jaxpr, timewise
from bpfree.estimators import redrawn
from bpfree.models import recurrent
from tests import problems, programs
from tests import statistics as gates
from tests.statistics import assert_close

PARAMS = problems.mlp_params()
KERNELS = {"rnn": 2, "gru": 6, "lstm": 8}


class Cells(nn.Module):
    cell: str
    lengths: tuple[int, ...] | None
    dtype: type = jnp.float64

    @nn.compact
    def __call__(self, x):
        lengths = None if self.lengths is None else jnp.array(self.lengths, jnp.int32)
        cell = recurrent.CELLS[self.cell](3, param_dtype=self.dtype)
        y = nn.RNN(cell)(x, seq_lengths=lengths)
        return nn.Dense(2, param_dtype=self.dtype)(y.sum(1))


def pulled(loss_fn, params, batch, signals):
    return bpfree.pullback(loss_fn)(params, batch)[2](signals)


@pytest.mark.parametrize("lengths", [None, (4, 2, 1)], ids=["all", "lengths"])
@pytest.mark.parametrize("cell", KERNELS)
def test_one_product_for_each_kernel_and_no_loop(cell, lengths, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (3, 4, 2), jnp.float64)
    batch = {"x": x, "label": jnp.arange(3) % 2}
    model = Cells(cell, lengths)
    params = model.init(jax.random.key(1), x)["params"]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss_fn = bpfree.supervised(model, cross_entropy)
    with jax.numpy_dtype_promotion("standard"):
        _, values, pull = bpfree.pullback(loss_fn)(params, batch)
        signals = jax.tree.map(jnp.cos, values)
        program = str(jax.make_jaxpr(pull)(signals))
        found = pull(signals)
        monkeypatch.setattr(timewise, "scan", _jaxpr.plain_scan)
        _, _, backwards = bpfree.pullback(loss_fn)(params, batch)
        assert "scan" in str(jax.make_jaxpr(backwards)(signals))
        assert_close(found, backwards(signals), rtol=1e-12, atol=1e-14)
    assert "scan" not in program and "while" not in program
    assert program.count("dot_general") == KERNELS[cell] + 1


def tied(params, h, x):
    h = programs.layer(params["w1"], x, "x") + programs.layer(params["w1"], h, "h")
    return h, h


def leaky(params, h, x):
    """The scale acts on the carry behind the node: a block that spans the steps."""
    h = params["scale"] * h / 2 + programs.layer(params["w1"], x, "x")
    return h, h


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
    _, values, pull = bpfree.pullback(loss_fn)(PARAMS, programs.SEQUENCES)
    return "scan" in str(jax.make_jaxpr(pull)(values))


@pytest.mark.parametrize(
    "loss, back",
    [
        (functools.partial(programs.recurrent, body=tied), False),
        (functools.partial(programs.recurrent, body=leaky), True),
        (functools.partial(programs.recurrent, body=without_node), True),
        (learned_start, True),
    ],
    ids=["tied", "leaky", "without_node", "learned_start"],
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
    monkeypatch.setattr(timewise, "_carry_moves", lambda *_: False)
    loss = functools.partial(programs.recurrent, body=leaky)
    found, truth = problems.pulled_and_truth(
        lambda p, b: loss(p, b), PARAMS, programs.SEQUENCES
    )
    assert gates.relative_error(found, truth) > 0.01


# ------------------------------------------------------------- noise drawn step by step


def estimated(loss, batch=programs.SEQUENCES, **options):
    tx = bpfree.node_perturbation(
        lambda p, b: loss(p, b), num_samples=16, sigma=1e-3, redraw=True, **options
    )
    gate = gates.mean_gate(
        problems.estimates(tx, PARAMS, batch, repeats=1024),
        problems.gradient(loss, PARAMS, batch),
    )
    assert gate.error < 0.06, gate
    return gate


@pytest.mark.parametrize(
    "loss, options",
    [
        (programs.recurrent, {}),
        (programs.scanned_layers, {"antithetic": True}),
        (functools.partial(programs.recurrent, body=leaky, reverse=True), {}),
    ],
    ids=["recurrent", "layers_antithetic", "leaky_reversed"],
)
def test_redrawn_estimates_are_right_on_average(loss, options, monkeypatch):
    monkeypatch.setattr(redrawn, "SEGMENT", 3)  # of four steps: the last stands alone
    assert estimated(loss, **options).passed


def test_other_noise_in_the_second_draw_would_be_seen(monkeypatch):
    def other(run, site, draw):
        nonlocal calls
        calls += 1
        return keys(run._replace(key=jax.random.fold_in(run.key, calls)), site, draw)

    keys, calls = redrawn._keys, 0
    monkeypatch.setattr(redrawn, "_keys", other)
    assert not estimated(programs.recurrent).passed


@pytest.mark.usefixtures("optimized")
def test_memory_is_a_quarter_of_that_of_backprop_through_time():
    """A GRU over 1,024 steps, as XLA compiles it; nothing is run."""
    model = recurrent.Model(2, cell="gru", hidden=32)
    x = jax.ShapeDtypeStruct((16, 1024, 32), jnp.float32)
    batch = {"x": x, "label": jax.ShapeDtypeStruct((16,), jnp.int32)}
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss_fn = bpfree.supervised(model, cross_entropy)
    with jax.numpy_dtype_promotion("standard"):
        params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        tx = bpfree.node_perturbation(loss_fn, num_samples=4, chunk_size=1, redraw=True)

        def memory(tx):
            def update(params, batch):
                return tx.update(None, tx.init(params), params, batch=batch)[0]

            program = jax.jit(update).lower(params, batch).compile()
            return program.memory_analysis().temp_size_in_bytes

        assert memory(tx) <= memory(bpfree.backprop(loss_fn)) / 4


@pytest.mark.parametrize(
    "options",
    [{"baseline": "leave_one_out"}, {"layerwise": True}, {"derivative": "jvp"}],
)
def test_what_needs_the_noise_kept(options):
    with pytest.raises(ValueError, match="redraw=True keeps one loss of every sample"):
        bpfree.node_perturbation(problems.mlp_loss, redraw=True, **options)
