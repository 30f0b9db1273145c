"""Held statistics, and BatchNorm of both adapters.

The truth is written by hand: the loss with the clean batch's mean and variance constant.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import bpfree
from tests import problems
from tests import statistics as gates
from tests.nnx_models import FLOAT
from tests.statistics import assert_close

SIZE, EPSILON = 6, 1e-5
X = jax.random.normal(jax.random.key(3), (SIZE, 3), jnp.float64)
NODES = {"first", "norm/bias", "norm/scale", "out"}
LABEL = jnp.sin(jnp.arange(SIZE, dtype=jnp.float64))


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """NNX's own norms ask for the common type of float64 and float32."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(4, name="first", **FLOAT)(x)
        norm = nn.BatchNorm(
            not train, name="norm", force_float32_reductions=False, **FLOAT
        )
        return nn.Dense(2, name="out", **FLOAT)(nn.tanh(norm(x)))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs, **FLOAT)
        self.norm = nnx.BatchNorm(4, rngs=rngs, **FLOAT)
        self.out = nnx.Linear(4, 2, rngs=rngs, **FLOAT)

    def __call__(self, x):
        return self.out(nnx.tanh(self.norm(self.first(x))))


def loss(outputs, labels):
    return ((outputs - labels[:, None]) ** 2).sum(1)


def double(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)


def linen_problem():
    variables = dict(Linen().init(jax.random.key(0), X))
    params = variables.pop("params")
    objective = bpfree.supervised(Linen(), loss, mutable=("batch_stats",), train=True)
    return objective, params, double(variables)


def nnx_problem():
    model = NNX(nnx.Rngs(0))
    objective = bpfree.supervised(model, loss, mutable=(nnx.BatchStat,))
    state = double(nnx.state(model, nnx.BatchStat))
    return objective, nnx.state(model, nnx.Param), state


@pytest.fixture(params=[linen_problem, nnx_problem], ids=["linen", "nnx"])
def problem(request):
    """(objective, params, batch)."""
    objective, params, state = request.param()
    bumped = jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(1.0 + jnp.arange(a.size)).reshape(a.shape), params
    )  # noqa: E501
    return objective, bumped, {"x": X, "label": LABEL, "state": state}


def by_hand(params, batch, deltas=(0.0, 0.0), held=lax.stop_gradient):
    """The losses; the statistics are those of the clean batch, seen through `held`."""

    def layer(name, x):
        weights = params[name]
        return x @ weights["kernel"][...] + weights["bias"][...][None]

    y = layer("first", batch["x"])
    mean, var = held(y.mean(0)), held(y.var(0))
    y = (y + deltas[0] - mean[None]) / jnp.sqrt(var + EPSILON)[None]
    y = y * params["norm"]["scale"][...][None] + params["norm"]["bias"][...][None]
    return loss(layer("out", jnp.tanh(y)) + deltas[1], batch["label"])


def test_clean_pass_is_batch_norm(problem):
    objective, params, batch = problem
    losses, state = objective(params, batch)
    assert_close(losses, by_hand(params, batch), rtol=1e-9)
    y = X @ params["first"]["kernel"][...] + params["first"]["bias"][...][None]
    assert jax.tree.structure(state) == jax.tree.structure(batch["state"])
    mean, var = jax.tree.leaves(state)
    assert_close(mean, 0.01 * y.mean(0), rtol=1e-6)
    assert_close(var, 0.99 + 0.01 * y.var(0), rtol=1e-6)


def test_autodiff_of_the_objective_is_the_true_gradient(problem):
    """`backprop` sees through the statistics; the held gradient is another one."""
    objective, params, batch = problem
    tx = bpfree.backprop(objective, example_batch=batch)
    gradient, state = tx.update(None, tx.init(params), params, batch=batch)
    mean = lambda params, **how: by_hand(params, batch, **how).mean()  # noqa: E731
    truth = jax.grad(lambda p: mean(p, held=lambda a: a))(params)
    assert gates.relative_error(gradient, truth) < 1e-9  # of the first bias it is 0
    assert gates.relative_error(gradient, jax.grad(mean)(params)) > 0.05
    assert_close(bpfree.aux(state), objective(params, batch)[1], rtol=1e-12)


def test_noisy_passes_keep_the_statistics_of_the_clean_one(problem):
    objective, params, batch = problem
    deltas = [jax.random.normal(jax.random.key(n), (SIZE, n)) for n in (4, 2)]
    given = dict(zip(("first", "out"), deltas, strict=True))
    (losses, _), values = bpfree.inject(objective)(params, batch, given)
    assert set(values) == NODES
    assert_close(losses, by_hand(params, batch, deltas), rtol=1e-9)
    other = by_hand(params, batch, deltas, held=lambda a: a + 0.1)
    assert not jnp.allclose(losses, other)


def test_the_pullback_is_exact(problem):
    objective, params, batch = problem
    nodes = ["first", "out"]  # the norm's parameters belong to the block of "out"
    zeros = {"first": jnp.zeros((SIZE, 4)), "out": jnp.zeros((SIZE, 2))}
    by_deltas = lambda d: by_hand(params, batch, (d["first"], d["out"])).mean()  # noqa: E731
    signals = jax.grad(by_deltas)(zeros)
    inject = bpfree.inject(objective, nodes)
    by_inject = lambda d: inject(params, batch, d)[0][0].mean()  # noqa: E731
    assert_close(jax.grad(by_inject)(zeros), signals, 1e-7, 1e-9)
    _, values, pull = bpfree.pullback(objective, nodes)(params, batch)
    assert set(values) == set(nodes)
    truth = jax.grad(lambda p: by_hand(p, batch).mean())(params)
    assert_close(pull(signals), truth, 1e-7, 1e-9)
    for path, g in jax.tree_util.tree_leaves_with_path(truth):
        assert g.any(), jax.tree_util.keystr(path)


def test_node_perturbation_is_the_gradient_at_held_statistics(problem):
    objective, params, batch = problem
    tx = bpfree.node_perturbation(
        objective, num_samples=32, sigma=1e-3, example_batch=batch
    )
    estimates = problems.estimates(tx, params, batch, repeats=512)
    truth = jax.grad(lambda p: by_hand(p, batch).mean())(params)
    gate = gates.mean_gate(estimates, truth)
    assert gate.passed and gate.error < 0.04, gate


@pytest.mark.parametrize(
    "options",
    [{}, {"pairing": "clean"}, {"baseline": "leave_one_out", "chunk_size": 2}],
)
def test_held_is_the_same_as_constant(options):
    """In a loop, rematerialised: every estimate equals that with the numbers put in."""

    def make(statistic):
        def loss_fn(params, batch):
            @jax.checkpoint
            def step(h, given):
                h = bpfree.node(h @ params["w1"], "h")
                return jnp.tanh(h - statistic(h.mean(0), given)[None]), h.mean(0)

            h, means = lax.scan(step, batch["x"], batch["given"])
            return ((h - batch["t"]) ** 2).sum(1), means

        return loss_fn

    held = make(lambda mean, given: bpfree.hold(mean, "mean"))
    constant = make(lambda mean, given: given)
    params, batch = problems.linear_params(), problems.mlp_batch()
    batch["given"] = jnp.zeros((4, 3))
    batch["given"] = held(params, batch)[1]
    results = []
    for loss_fn in (held, constant):
        tx = bpfree.likelihood_ratio(
            loss_fn, num_samples=8, sigma=0.5, example_batch=batch, **options
        )
        results.append(tx.update(None, tx.init(params), params, batch=batch))
    assert_close(results[0][0], results[1][0], rtol=1e-9)
    assert_close(results[0][1].aux, results[1][1].aux, rtol=1e-12)
    assert set(bpfree.record(held)(params, batch)[1]) == {"h"}


def test_a_bad_statistic_is_named(problem):
    objective, params, batch = problem
    batch["x"] = batch["x"].at[0, 0].set(1e200)  # whose square is not finite
    tx = bpfree.node_perturbation(objective, num_samples=2, example_batch=batch)
    _, state = tx.update(None, tx.init(params), params, batch=batch)
    message = bpfree.fault_message(state, objective, params, batch)
    assert "node 'norm/var' is not finite" in message


def test_masks_axes_and_slow_variance():
    """As Linen itself computes them."""
    norm = nn.BatchNorm(
        False, axis=1, use_fast_variance=False, force_float32_reductions=False, **FLOAT
    )
    x = jax.random.normal(jax.random.key(0), (4, 3, 5), jnp.float64)
    mask = jnp.arange(5)[None, None] < 3
    variables = norm.init(jax.random.key(0), x, mask=mask)
    options = {"mask": mask, "mutable": ["batch_stats"]}
    plain = norm.apply(variables, x, **options)
    assert_close(bpfree.tag_linen(norm.apply)(variables, x, **options), plain, 1e-12)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        norm = nn.BatchNorm(False, force_float32_reductions=False, **FLOAT)
        return nn.tanh(norm(nn.Dense(3, **FLOAT)(x))), None


LIFTED = {
    "variable_axes": {"params": 0, "batch_stats": 0},
    "split_rngs": {"params": True},
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.scan(nn.remat(Normed, prevent_cse=False), length=3, **LIFTED)(),
        lambda: nn.vmap(Normed, in_axes=None, out_axes=1, axis_size=2, **LIFTED)(),
    ],
    ids=["scan of remat", "vmap"],
)
def test_lifted_norms(make):
    """Held in loops too: the pass is Linen's own, and zero noise changes nothing."""

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make()(x, None)[0].reshape(SIZE, -1)

    variables = dict(Outer().init(jax.random.key(0), X))
    params, state = variables.pop("params"), double(variables)
    objective = bpfree.supervised(Outer(), loss, mutable=("batch_stats",))
    batch = {"x": X, "label": LABEL, "state": state}
    outputs, moved = Outer().apply(
        {"params": params, **state}, X, mutable=["batch_stats"]
    )
    expected = loss(outputs, LABEL), moved
    assert_close(objective(params, batch), expected, rtol=1e-12)
    still, values = bpfree.inject(objective)(params, batch, {})
    assert_close(still, expected, rtol=1e-12)
    assert sum("Dense" in name for name in values) == 1


def test_state_must_be_named_and_given(problem):
    objective, params, batch = problem
    with pytest.raises(KeyError, match="no 'state'"):
        objective(params, {"x": X, "label": LABEL})


def test_nnx_state_must_be_declared():
    model = NNX(nnx.Rngs(0))
    params, state = nnx.split(model, nnx.Param, nnx.BatchStat)[1:]
    batch = {"x": X, "label": LABEL, "state": state}
    with pytest.raises(ValueError, match="norm changes its running.*mutable="):
        bpfree.supervised(model, loss)(params, batch)
    with pytest.raises(ValueError, match="state must be nnx.state"):
        bpfree.supervised(model, loss, mutable=(nnx.BatchStat,))(
            params, {**batch, "state": params}
        )


def test_in_evaluation_the_running_statistics_are_read():
    objective, params, state = linen_problem()
    batch = {"x": X, "label": LABEL, "state": jax.tree.map(lambda a: a + 1.0, state)}
    still = bpfree.supervised(Linen(), loss)
    outputs = Linen().apply({"params": params, **batch["state"]}, X)
    assert_close(still(params, batch), loss(outputs, LABEL), rtol=1e-12)
    assert not jnp.allclose(still(params, batch), objective(params, batch)[0])

    model = NNX(nnx.Rngs(0))
    model.eval()
    params, state = nnx.split(model, nnx.Param, nnx.BatchStat)[1:]
    batch["state"] = jax.tree.map(lambda a: a + 1.0, state)
    losses = bpfree.supervised(model, loss)(params, batch)
    assert not jnp.allclose(losses, loss(model(X), LABEL))
    nnx.update(model, batch["state"])
    assert_close(losses, loss(model(X), LABEL), rtol=1e-12)


def test_training_carries_the_statistics_and_evaluates_with_them(problem):
    objective, params, batch = problem
    tx = bpfree.node_perturbation(
        objective, num_samples=8, sigma=1e-3, example_batch=batch
    )
    chain = optax.chain(tx, optax.adam(0.02))

    @jax.jit
    def run(params, batch):
        def step(carry, _):
            params, state, opt_state = carry
            given = {**batch, "state": state}
            zeros = optax.tree.zeros_like(params)
            updates, opt_state = chain.update(zeros, opt_state, params, batch=given)
            params = optax.apply_updates(params, updates)
            return (params, bpfree.aux(opt_state), opt_state), bpfree.value(opt_state)

        carry = params, batch["state"], chain.init(params)
        return lax.scan(step, carry, length=400)

    (params, state, _), losses = run(params, batch)
    assert losses[-1] < 0.2 * losses[0]
    if isinstance(params, nnx.State):
        model = NNX(nnx.Rngs(1))
        nnx.update(model, params, state)
        model.eval()
        outputs = model(X)
    else:
        outputs = Linen().apply({"params": params, **state}, X)
    assert loss(outputs, LABEL).mean() < 0.2 * losses[0]
