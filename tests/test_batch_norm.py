"""Statistics of the batch, BatchNorm of Linen, NNX and by hand; and `bpfree.hold`.

The truth is written by hand, or autodiff of the loss as it stands.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

import bpfree
from bpfree.estimators import statistics
from bpfree.program.trace import trace
from tests import problems
from tests import statistics as gates
from tests.nnx_models import FLOAT
from tests.statistics import assert_close
from tests.zoo import case as zoo
from tests.zoo import checks

SIZE, EPSILON = 6, 1e-5
X = jax.random.normal(jax.random.key(3), (SIZE, 3), jnp.float64)
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
    variables = dict(jax.jit(Linen().init)(jax.random.key(0), X))
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


def by_hand(params, batch):
    """The losses."""

    def layer(name, x):
        weights = params[name]
        return x @ weights["kernel"][...] + weights["bias"][...][None]

    y = layer("first", batch["x"])
    y = (y - y.mean(0)[None]) / jnp.sqrt(y.var(0) + EPSILON)[None]
    y = y * params["norm"]["scale"][...][None] + params["norm"]["bias"][...][None]
    return loss(layer("out", jnp.tanh(y)), batch["label"])


def test_clean_pass_is_batch_norm(problem):
    objective, params, batch = problem
    losses, state = jax.jit(objective)(params, batch)
    assert_close(losses, jax.jit(by_hand)(params, batch), rtol=1e-9)
    y = X @ params["first"]["kernel"][...] + params["first"]["bias"][...][None]
    assert jax.tree.structure(state) == jax.tree.structure(batch["state"])
    mean, var = jax.tree.leaves(state)
    assert_close(mean, 0.01 * y.mean(0), rtol=1e-6)
    assert_close(var, 0.99 + 0.01 * y.var(0), rtol=1e-6)


def test_the_node_stands_after_the_norm(problem):
    """That the loss function hands out the running statistics changes nothing."""
    objective, params, batch = problem

    def without(params, batch):
        return objective(params, batch)[0]

    for loss_fn in (objective, without):
        sites = [s for s in trace(loss_fn, params, batch).sites if s.kind != "input"]
        nodes = [(s.name, s.kind, s.batch_axis) for s in sites]
        assert nodes == [("first", "node", 0), ("out", "node", 0)]


def test_what_is_handed_out_is_no_use():
    """Neither the moments of a norm nor the steps of a loop that only aux reads."""

    def loss_fn(params, batch, seen):
        def step(h, w):
            h = h @ w
            mean, var = h.mean(0), h.var(0)
            h = (h - mean[None]) / jnp.sqrt(var + 0.1)[None]
            return jnp.sin(h), (mean, var, h)

        h, made = lax.scan(step, batch["x"] @ params["w1"], params["w2"])
        losses = ((h @ params["w3"] - batch["t"]) ** 2).sum(1)
        return (losses, made) if seen else losses

    params, batch = two_norms()
    params["w2"] = jnp.stack([params["w2"], jnp.cos(params["w2"])])
    seen, unseen = (
        trace(partial(loss_fn, seen=seen), params, batch).sites for seen in (True, False)
    )
    assert seen == unseen


def test_the_pullback_is_exact(problem):
    objective, params, batch = problem
    pulled, _ = problems.pulled_and_truth(objective, params, batch)
    truth = problems.gradient(by_hand, params, batch)
    assert gates.relative_error(pulled, truth) < 1e-9


ESTIMATORS = {
    "node_perturbation": bpfree.node_perturbation,
    "layerwise": partial(bpfree.node_perturbation, layerwise=True),
    "jvp": partial(bpfree.node_perturbation, derivative="jvp"),
    "antithetic": partial(bpfree.node_perturbation, antithetic=True),
    "redraw": partial(bpfree.node_perturbation, redraw=True),
    "noisy": partial(bpfree.likelihood_ratio, pairing="noisy"),
    "leave_one_out": partial(bpfree.likelihood_ratio, baseline="leave_one_out"),
    "feedback": partial(bpfree.learned_feedback, shrinkage=1.0),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_of_the_gradient_of_the_loss(name):
    """Two layers, the second of which has statistics of what the first made."""
    params, batch = two_norms()
    options = {"num_samples": 256, "sigma": 1e-3, "example_batch": batch}
    if name == "jvp":
        del options["sigma"]
    tx = ESTIMATORS[name](normed_twice, **options)
    estimates = problems.estimates(tx, params, batch, repeats=256)
    gate = gates.mean_gate(estimates, problems.gradient(normed_twice, params, batch))
    assert gate.passed and gate.error < 0.15, gate


def test_of_both_modules(problem):
    objective, params, batch = problem
    tx = bpfree.node_perturbation(
        objective, num_samples=32, sigma=1e-3, example_batch=batch
    )
    estimates = problems.estimates(tx, params, batch, repeats=512)
    gate = gates.mean_gate(estimates, problems.gradient(objective, params, batch))
    assert gate.passed and gate.error < 0.06, gate


def test_statistics_held_on_purpose_are_constants():
    """The same estimate as with `bpfree.hold` around the statistics."""

    def make(held):
        def loss_fn(params, batch):
            h = batch["x"] @ params["w1"]
            h = (h - held(h.mean(0), "mean")[None]) / held(h.std(0), "std")[None]
            return ((jnp.sin(h) - batch["t"]) ** 2).sum(1)

        return loss_fn

    params, batch = two_norms()
    params = {"w1": params["w1"]}
    options = {"num_samples": 8, "sigma": 1e-3, "example_batch": batch}
    by_hand = bpfree.node_perturbation(make(bpfree.hold), **options)
    other = bpfree.node_perturbation(
        make(lambda v, n: v), hold_statistics=True, **options
    )
    found = [problems.update(tx, params, batch)[0] for tx in (by_hand, other)]
    assert_close(*found, rtol=1e-6)


def two_norms():
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda k, *shape: jax.random.normal(k, shape, jnp.float64)  # noqa: E731
    shapes = {"w1": (3, 4), "w2": (4, 4), "w3": (4, 4)}
    params = {n: normal(k, *s) for k, (n, s) in zip(keys, shapes.items(), strict=False)}
    return params, {"x": X, "t": normal(keys[3], SIZE, 4)}


def normed_twice(params, batch):
    h = batch["x"]
    for name in ("w1", "w2"):
        h = h @ params[name]
        h = (h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 0.1)[None]
        h = jnp.sin(h + 0.5 * h**2)
    return ((h @ params["w3"] - batch["t"]) ** 2).sum(1)


def normed_in_a_loop(params, batch):
    """Layers that are scanned over: the statistics of each see those before."""

    @jax.checkpoint
    def step(h, w):
        h = h @ w
        h = (h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 0.1)[None]
        return jnp.sin(h + 0.5 * h**2), None

    h = lax.scan(step, batch["x"] @ params["w1"], params["w2"])[0]
    return ((h @ params["w3"] - batch["t"]) ** 2).sum(1)


@pytest.mark.parametrize("name", ["node_perturbation", "redraw", "noisy", "feedback"])
def test_statistics_in_a_loop(name):
    params, batch = two_norms()
    params["w2"] = jnp.stack([params["w2"], jnp.cos(params["w2"])])
    sites = {s.name: s for s in trace(normed_in_a_loop, params, batch).sites}
    assert [n for n, s in sites.items() if s.kind == "statistic"]
    assert sites["w2"].kind == "node" and sites["w2"].batch_axis == 1
    options = {"num_samples": 256, "sigma": 1e-3, "example_batch": batch}
    tx = ESTIMATORS[name](normed_in_a_loop, **options)
    estimates = problems.estimates(tx, params, batch, repeats=256)
    truth = problems.gradient(normed_in_a_loop, params, batch)
    gate = gates.mean_gate(estimates, truth)
    assert gate.passed and gate.error < 0.15, gate


def chained(params, batch):
    """All of the first statistic's effect is on the second one."""
    h = batch["x"] @ params["w1"]
    h = h / jnp.sqrt((h**2).mean(0) + 0.1)[None]
    third = (h**3 + h).mean(0)
    return ((third[None] - batch["t"]) ** 2).sum(1)


def test_gains_see_the_statistics_downstream():
    gate = chained_gate()
    assert gate.passed and gate.error < 0.06, gate


def test_gains_that_see_no_later_statistic_are_seen(monkeypatch):
    """The planted fault: statistics are held in the passes that move one of them."""
    gains = statistics._gains

    def deaf(run, part):
        held = run.program.answering(run.values, {})
        free = lambda s: {k: v for k, v in held.held.items() if k != s.name}  # noqa: E731
        one = lambda s: run._replace(program=held._replace(held=free(s)))  # noqa: E731
        alone = lambda s: gains(one(s), part._replace(nodes=(s,)))  # noqa: E731
        return {k: v for s in part.nodes for k, v in alone(s).items()}

    monkeypatch.setattr(statistics, "_gains", deaf)
    assert not chained_gate().passed


def test_gains_that_are_left_out_are_seen(monkeypatch):
    """The planted fault: nearly nothing is put back."""
    gains = statistics._gains

    def faint(run, sites):
        return jax.tree.map(lambda g: 1e-3 * g, gains(run, sites))

    monkeypatch.setattr(statistics, "_gains", faint)
    assert not chained_gate().passed


def chained_gate():
    params, batch = two_norms()
    params = {"w1": params["w1"]}
    tx = bpfree.node_perturbation(chained, num_samples=64, sigma=1e-3)
    estimates = problems.estimates(tx, params, batch, repeats=512)
    return gates.mean_gate(estimates, problems.gradient(chained, params, batch))


def test_a_fold_of_the_batch_and_a_mean_over_part_of_it():
    """Examples folded with places; statistics of tokens; and a penalty on a mean."""

    def loss_fn(params, batch):
        h = (batch["x"] @ params["w1"]).reshape(-1, 4)  # (B T, 4)
        h = jnp.tanh(h - h.mean(0)[None]).reshape(SIZE, 2, 4)
        share = jax.nn.softmax(h @ params["w2"])
        penalty = 3.0 * (share.mean((0, 1)) ** 2).sum()
        return ((h.sum(1) - batch["t"]) ** 2).sum(1) + penalty

    params, batch = two_norms()
    batch["x"] = jnp.stack([X, jnp.cos(X)], 1)
    tx = bpfree.node_perturbation(loss_fn, num_samples=64, sigma=1e-3)
    estimates = problems.estimates(tx, params, batch, repeats=512)
    gate = gates.mean_gate(estimates, problems.gradient(loss_fn, params, batch))
    assert gate.passed and gate.error < 0.06, gate
    axes = [s.batch_axis for s in trace(loss_fn, params, batch).nodes]
    assert axes == [0, 0]


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
    batch["given"] = jax.jit(held)(params, batch)[1]
    results = []
    for loss_fn in (held, constant):
        tx = bpfree.likelihood_ratio(
            loss_fn, num_samples=8, sigma=0.5, example_batch=batch, **options
        )
        results.append(problems.update(tx, params, batch))
    assert_close(results[0][0], results[1][0], rtol=1e-9)
    assert_close(results[0][1].aux, results[1][1].aux, rtol=1e-12)
    assert set(bpfree.record(held)(params, batch)[1]) == {"h"}


def test_a_bad_statistic_is_named():
    def loss_fn(params, batch):
        h = batch["x"] @ params["w1"]
        return ((jnp.tanh(h) - (h**2).mean(0)[None]) ** 2).sum(1)

    params, batch = two_norms()
    params = {"w1": params["w1"]}
    batch["x"] = batch["x"].at[0, 0].set(1e200)  # whose square is not finite
    tx = bpfree.node_perturbation(loss_fn, num_samples=2)
    _, state = problems.update(tx, params, batch)
    message = bpfree.fault_message(state, loss_fn, params, batch)
    assert "node 'mean of w1' is not finite" in message


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
    "make, number",
    [
        (lambda: nn.scan(nn.remat(Normed, prevent_cse=False), length=3, **LIFTED)(), 1),
        (lambda: nn.vmap(Normed, in_axes=None, out_axes=1, axis_size=2, **LIFTED)(), 1),
    ],
    ids=["scan of remat", "vmap"],
)
def test_lifted_norms(make, number):
    """The sum of kernel's product and bias is one node, in loops and under `vmap`.

    The pass is Linen's own, in loops too, and zero noise changes nothing."""

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make()(x, None)[0].reshape(SIZE, -1)

    variables = dict(jax.jit(Outer().init)(jax.random.key(0), X))
    params, state = variables.pop("params"), double(variables)
    objective = bpfree.supervised(Outer(), loss, mutable=("batch_stats",))
    batch = {"x": X, "label": LABEL, "state": state}

    @jax.jit
    def by_linen(params, state):
        variables = {"params": params, **state}
        outputs, moved = Outer().apply(variables, X, mutable=["batch_stats"])
        return loss(outputs, LABEL), moved

    expected = by_linen(params, state)
    assert_close(jax.jit(objective)(params, batch), expected, rtol=1e-12)
    still, values = jax.jit(bpfree.inject(objective))(params, batch, {})
    assert_close(still, expected, rtol=1e-12)
    assert sum("Dense" in name for name in values) == number


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


@pytest.mark.parametrize("size", [1, 4])
def test_examples_that_are_all_alike_are_trained(size):
    """No share differs from another, and the mean over the batch still moves the loss."""

    def loss_fn(params, batch):
        h = jnp.tanh(batch["x"] @ params["w1"])
        return ((h - 0.5 * h.mean(0, keepdims=True)) @ params["w2"] - 1).sum(1) ** 2

    params = {"w1": zoo.weight(0, 5, 5, 6), "w2": zoo.weight(1, 6, 6, 3)}
    batch = {"x": jnp.repeat(zoo.normal(2, 1, 5), size, 0)}
    found = checks.slopes(zoo.Case(loss_fn, params, batch))
    assert found["(all)"].error < 0.1
    assert all(slope.passed for slope in found.values()), found
