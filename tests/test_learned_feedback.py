"""Learned feedback: its predictors against autodiff, its contract, its two teachers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import bpfree
from bpfree.estimators import predictors
from bpfree.estimators.clean_pass import responses as of_blocks
from bpfree.program import passes, rewriting, tags
from bpfree.program.trace import trace
from bpfree.sampling.noise import draw_chunk, rademacher
from tests import linen_models, problems
from tests.statistics import assert_close, mean_gate, relative_error

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
direct = functools.partial(predictors.direct, gate="learned")


def feedback(loss_fn=problems.mlp_loss, batch=BATCH, **kwargs):
    return bpfree.learned_feedback(
        loss_fn, example_batch=batch, fit=kwargs.pop("fit", problems.adam(3e-3)), **kwargs
    )


def with_weights(tx, params, weights):
    state = tx.init(params)
    return state._replace(inner=state.inner._replace(weights=weights))


def clean_pass(loss_fn, params, batch):
    traced = trace(loss_fn, params, batch)
    _, values, _ = passes.cut_vjp(traced, (params, batch))
    return predictors.Clean(traced, (params, batch), values)


def squares(model):
    return bpfree.supervised(
        model, lambda y, t: jnp.sum((y - t) ** 2, axis=(*range(1, y.ndim),))
    )


class Skip(nn.Module):
    """A node that feeds two others, one of them over the head of the next."""

    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.Dense(4, param_dtype=jnp.float64)(x))
        z = nn.tanh(nn.Dense(4, param_dtype=jnp.float64)(h))
        return nn.Dense(2, param_dtype=jnp.float64)(z + h)


class Reading(nn.Module):
    """A recurrent net, with a readout behind the loop."""

    @nn.compact
    def __call__(self, x):
        h = linen_models.Recurrent()(x)
        return nn.Dense(2, param_dtype=jnp.float64)(h.mean(1))


SHAPES = {
    "mlp": (linen_models.MLP(), (5, 3)),
    "skip": (Skip(), (5, 3)),
    "conv": (linen_models.CNN(), (2, 5, 5, 2)),
    "recurrent": (Reading(), (2, 4, 3)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_with_the_models_own_weights_chained_feedback_is_backprop(name):
    model, shape = SHAPES[name]
    x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    params = model.init(jax.random.key(1), x)["params"]
    batch = {"x": x, "label": jnp.zeros_like(model.apply({"params": params}, x)) + 0.3}
    loss_fn = squares(model)
    tx = feedback(loss_fn, batch)

    @jax.jit
    def run(params):
        state = with_weights(tx, params, params)
        gradient, after = tx.update(None, state, params, batch=batch)
        return gradient, after.inner.weights, problems.gradient(loss_fn, params, batch)

    gradient, weights, truth = run(params)
    assert_close(gradient, truth, rtol=1e-7, atol=1e-9)
    # The responses agree with the model's own blocks up to sigma: little to learn.
    assert relative_error(weights, params) < 3e-2


@functools.cache
def estimates(shrinkage, teacher="losses", repeats=2048):
    tx = feedback(
        shrinkage=shrinkage, teacher=teacher, num_samples=2, sigma=1e-3, antithetic=True
    )
    wrong = jax.tree.map(lambda p: p + 0.5, PARAMS)
    state = with_weights(tx, PARAMS, wrong)
    keys = jax.random.split(jax.random.key(5), repeats)
    one = lambda key: tx.estimator.estimate(key, PARAMS, BATCH, state).gradient  # noqa: E731
    return jax.jit(jax.vmap(one))(keys)


TRUTH = problems.gradient(problems.mlp_loss, PARAMS, BATCH)


@pytest.mark.parametrize("teacher", ["losses", "responses", "jvp"])
def test_as_a_control_variate_it_is_unbiased_with_any_predictor(teacher):
    gate = mean_gate(estimates(1.0, teacher), TRUTH)
    assert gate.passed and gate.error < 0.05, gate


def test_the_gate_sees_a_shrunken_residual():
    assert not mean_gate(estimates(0.8), TRUTH).passed


def test_a_right_prediction_takes_the_variance_away():
    """Antithetic, so that what is left of the residual is of third order in sigma."""
    tx = feedback(
        shrinkage=1.0, teacher="losses", num_samples=2, antithetic=True, sigma=1e-4
    )
    state = with_weights(tx, PARAMS, PARAMS)
    gradient, _ = tx.update(None, state, PARAMS, batch=BATCH)
    assert relative_error(gradient, TRUTH) < 1e-5
    plain = bpfree.node_perturbation(problems.mlp_loss, num_samples=2, antithetic=True)
    noisy, _ = plain.update(None, plain.init(PARAMS), PARAMS, batch=BATCH)
    assert relative_error(noisy, TRUTH) > 0.1


def descended(tx, weights):
    """What the predictor's optimiser is handed (fit = identity): minus its change."""
    state = with_weights(tx, PARAMS, weights)
    after = tx.update(None, state, PARAMS, batch=BATCH)[1]
    return jax.tree.map(lambda new, old: new - old, after.inner.weights, weights)


def first_noise(clean, samples):
    """The signs that an estimator of seed 0 draws in its first step, at hidden nodes."""
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0]
    hidden = clean.program.nodes[:-1]
    return draw_chunk(rademacher(), key, jnp.arange(samples), hidden)


@pytest.mark.parametrize(
    "predictor", [predictors.chained(), direct()], ids=["chained", "direct"]
)
def test_losses_teach_the_squared_error_of_the_directional_derivative(predictor):
    """The slope equals autodiff of mean r^2 / 2, written out with `inject`."""
    sigma, samples = 0.1, 3
    tx = feedback(
        predictor=predictor,
        teacher="losses",
        num_samples=samples,
        sigma=sigma,
        fit=optax.identity(),
    )
    weights = jax.tree.map(lambda w: w + 0.3, tx.init(PARAMS).inner.weights)
    clean = clean_pass(problems.mlp_loss, PARAMS, BATCH)
    noise = first_noise(clean, samples)["h"]
    clean_losses = problems.mlp_loss(PARAMS, BATCH)

    def objective(weights):
        guess = predictor.predict(weights, clean)["h"]

        def one(z):
            z = z.astype(jnp.float64)
            losses = bpfree.inject(problems.mlp_loss)(PARAMS, BATCH, {"h": sigma * z})[0]
            return (losses - clean_losses) / sigma - (z * guess).sum(1)

        return (jax.vmap(one)(noise) ** 2).mean() / 2

    assert_close(
        descended(tx, weights), jax.grad(objective)(weights), rtol=1e-4, atol=1e-5
    )


def deep_loss(params, batch):
    """Three nodes: what moves at the first must not reach the last."""
    h = bpfree.node(batch["x"] @ params["w1"] + params["b1"][None], "h")
    m = bpfree.node(jnp.tanh(h) @ params["w2"] + params["b2"][None], "m")
    y = bpfree.node(jnp.tanh(m) @ params["w3"], "y")
    return jnp.sum((y - batch["t"]) ** 2, axis=1)


DEEP = {k: PARAMS[k] for k in ("w1", "b1", "w2", "b2")} | {"w3": PARAMS["w1"].T}


def misfit(weights, noise):
    """Mean of |(V - W) times what moves at the kernel's input|^2 / 2, at two kernels."""
    h = BATCH["x"] @ DEEP["w1"] + DEEP["b1"][None]
    m = jnp.tanh(h) @ DEEP["w2"] + DEEP["b2"][None]
    total = 0.0
    for y, z, name in ((h, noise["h"], "w2"), (m, noise["m"], "w3")):
        moved = (1 - jnp.tanh(y) ** 2)[None] * z.astype(jnp.float64)
        total += ((moved @ (weights[name] - DEEP[name])) ** 2).sum(-1).mean() / 2
    return total


@pytest.mark.parametrize("teacher, same", [("jvp", True), ("responses", False)])
def test_derivatives_teach_the_squared_error_of_each_block(teacher, same):
    """The slope equals autodiff of the error, written out, whatever sigma is.

    The gate sees what is not it: a noisy pass, in which the first node moves the last.
    """
    samples = 3
    tx = feedback(
        deep_loss, teacher=teacher, num_samples=samples, sigma=0.3, fit=optax.identity()
    )
    weights = jax.tree.map(lambda w: w + 0.3, tx.init(DEEP).inner.weights)
    state = with_weights(tx, DEEP, weights)
    after = tx.update(None, state, DEEP, batch=BATCH)[1].inner.weights
    found = jax.tree.map(jnp.subtract, after, weights)
    noise = first_noise(clean_pass(deep_loss, DEEP, BATCH), samples)
    assert (relative_error(found, jax.grad(misfit)(weights, noise)) < 1e-12) == same


class Factored(nn.Module):
    """A kernel made of two factors: a block that is not affine in both together."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(4, param_dtype=jnp.float64)(x))
        start = nn.initializers.normal(1.0)
        left = self.param("left", start, (4, 3), jnp.float64)
        right = self.param("right", start, (3, 2), jnp.float64)
        return x @ (left @ right)


@pytest.mark.parametrize(
    "model, shape, saved",
    [(*SHAPES["skip"], 2), (*SHAPES["conv"], 4), (Factored(), (5, 3), 0)],
)
def test_where_blocks_are_affine_one_product_tells_their_error(model, shape, saved):
    """The same slope as from the responses of predictor and model apart.

    The gate sees those two: a product more for each kernel behind a node.
    """
    x = np.random.default_rng(0).normal(size=shape)
    params = model.init(jax.random.key(0), x)["params"]
    loss_fn, batch = squares(model), {"x": x, "label": model.apply({"params": params}, x)}
    apart = predictors.chained()._replace(respond=lambda *a: of_blocks(*a))

    def fitted(predictor):
        tx = feedback(
            loss_fn, batch, teacher="jvp", fit=optax.identity(), predictor=predictor
        )
        weights = jax.tree.map(lambda w: w + 0.3, tx.init(params).inner.weights)
        state = with_weights(tx, params, weights)
        update = lambda p: tx.update(None, state, p, batch=batch)[1].inner.weights  # noqa: E731
        jaxpr = jax.make_jaxpr(update)(params).jaxpr
        used, _ = tags.dce(jaxpr, [True] * len(jaxpr.outvars))
        found = re.findall(" = (?:dot_general|conv_general_dilated)", str(used))
        return update(params), len(found)

    (one, few), (two, many) = fitted(predictors.chained()), fitted(apart)
    assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert many - few == saved


def test_derivatives_leave_a_right_predictor_alone():
    """There is no noise of a finite difference: nothing moves it."""
    tx = feedback(deep_loss, teacher="jvp", fit=optax.identity())
    after = tx.update(None, with_weights(tx, DEEP, DEEP), DEEP, batch=BATCH)[1]
    assert_close(after.inner.weights, DEEP, rtol=0, atol=1e-15)


@pytest.mark.parametrize("teacher", ["responses", "jvp"])
def test_responses_teach_the_weights_of_the_next_block(teacher):
    """From small random weights to the model's own, by noise alone."""
    tx = feedback(sigma=1e-3, num_samples=8, fit=problems.adam(0.03), teacher=teacher)

    @jax.jit
    def run(state):
        step = lambda state, _: (tx.update(None, state, PARAMS, batch=BATCH)[1], None)  # noqa: E731
        return jax.lax.scan(step, state, length=400)[0]

    weights = run(tx.init(PARAMS)).inner.weights
    assert relative_error(weights["w2"], PARAMS["w2"]) < 0.02
    assert relative_error(weights["w1"], PARAMS["w1"]) > 0.5  # feeds nothing back


@pytest.mark.parametrize("gate", ["derivative", "learned"])
def test_a_direct_predictor_learns_the_error_of_the_last_nodes_response(gate):
    """The slope equals autodiff of |sum_l B_l^T (gate_l z_l) - change|^2, written out."""
    sigma, samples = 0.1, 3
    tx = feedback(
        predictor=predictors.direct(gate=gate),
        num_samples=samples,
        sigma=sigma,
        fit=optax.identity(),
    )
    weights = jax.tree.map(lambda w: w + 0.3, tx.init(PARAMS).inner.weights)
    clean = clean_pass(problems.mlp_loss, PARAMS, BATCH)
    noise = first_noise(clean, samples)["h"]
    h, y = clean.values["h"], clean.values["y"]
    inject = bpfree.inject(problems.mlp_loss)

    def objective(weights):
        mine = weights["h"]
        learned = jax.nn.sigmoid(mine["slope"][None] * h + mine["shift"][None])
        g = learned if gate == "learned" else 1 - jnp.tanh(h) ** 2

        def one(z):
            z = z.astype(jnp.float64)
            moved = inject(PARAMS, BATCH, {"h": sigma * z})[1]["y"]
            return ((g * z) @ mine["matrix"].T - (moved - y) / sigma).ravel()

        return (jax.vmap(one)(noise) ** 2).sum() / 2 / (samples * len(y) + h[0].size)

    assert_close(
        descended(tx, weights), jax.grad(objective)(weights), rtol=1e-4, atol=1e-5
    )


def test_responses_teach_a_direct_predictor_the_way_to_the_last_node():
    """With one hidden layer that is its kernel; any rate below 1 is stable."""
    tx = bpfree.learned_feedback(
        problems.mlp_loss,
        example_batch=BATCH,
        predictor=predictors.direct(),
        sigma=1e-3,
        num_samples=2,
    )

    @jax.jit
    def run(state):
        step = lambda state, _: (tx.update(None, state, PARAMS, batch=BATCH)[1], None)  # noqa: E731
        return jax.lax.scan(step, state, length=300)[0]

    with jax.numpy_dtype_promotion("standard"):  # for optax's Adam
        found = run(tx.init(PARAMS)).inner.weights["h"]["matrix"]
    assert relative_error(found, PARAMS["w2"].T) < 0.02


@pytest.mark.parametrize("gate", ["derivative", "learned"])
def test_no_feedback_of_a_direct_predictor_passes_through_another_layer(gate):
    """What one layer's weights make of the error reaches that layer alone."""
    model, shape = SHAPES["skip"]
    x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    params = model.init(jax.random.key(1), x)["params"]
    clean = clean_pass(squares(model), params, {"x": x, "label": jnp.ones((5, 2))})

    def made_of(predictor, weights):
        """{node: names of the layers whose weights its feedback reads}, by the jaxpr."""
        leaves = jax.tree_util.tree_leaves_with_path(weights)
        owners = [path[0].key for path, _ in leaves]

        def owners_of(name):
            used = rewriting.reads(lambda w: predictor.predict(w, clean)[name], weights)
            return {owner for owner, use in zip(owners, used, strict=True) if use}

        return {site.name: owners_of(site.name) for site in clean.program.nodes[:-1]}

    predictor = predictors.direct(gate=gate)
    weights = predictor.init(jax.random.key(2), clean)
    found = made_of(predictor, weights)
    assert found == {name: {name} for name in weights}
    chain = made_of(predictors.chained(), params)  # the test sees one
    assert sorted(map(len, chain.values())) == [1, 2]


def test_derivative_gate_is_that_of_the_activation():
    model = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(2)])
    x = jax.random.normal(jax.random.key(0), (4, 3), jnp.float32)
    params = model.init(jax.random.key(1), x)["params"]
    batch = {"x": x, "label": jnp.zeros((4, 2), jnp.float32)}
    clean = clean_pass(squares(model), params, batch)
    predictor = predictors.direct()
    weights = predictor.init(jax.random.key(2), clean)
    name, last = (site.name for site in clean.program.nodes)
    found = predictor.predict(weights, clean)
    np.testing.assert_allclose(found[last], 2 * clean.values[last], rtol=1e-5)
    expected = jnp.where(clean.values[name] > 0, 1.0, 0.0) * (
        found[last] @ weights[name]["matrix"]
    )
    np.testing.assert_allclose(found[name], expected, rtol=1e-5)


def test_per_channel_is_constant_over_positions_but_for_the_gate():
    model, shape = SHAPES["conv"]
    x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    params = model.init(jax.random.key(1), x)["params"]
    batch = {"x": x, "label": jnp.zeros((2, 2), jnp.float64)}
    clean = clean_pass(squares(model), params, batch)
    for per, entries in (("channel", 4), ("position", 3 * 3 * 4)):
        predictor = direct(per=per)
        weights = predictor.init(jax.random.key(2), clean)
        first = clean.program.nodes[0].name
        assert weights[first]["matrix"].shape == (2, entries)
        zeroed = jax.tree.map(lambda w: w, weights)
        zeroed[first]["slope"] = jnp.zeros_like(weights[first]["slope"])
        found = predictor.predict(zeroed, clean)[first]
        flat = bool(jnp.allclose(found, found[:, :1, :1]))
        assert found.shape == (2, 3, 3, 4) and flat == (per == "channel")


def threshold_loss(params, batch):
    h = jnp.sign(bpfree.node(batch["x"] @ params["w1"], "h"))
    y = bpfree.node(h @ params["w2"], "y")
    return jnp.sum((y - batch["t"]) ** 2, axis=1)


def test_thresholds_train_with_a_learned_gate_and_are_refused_without():
    params = {k: problems.mlp_params(width=8)[k] for k in ("w1", "w2")}
    batch = problems.mlp_batch(16, width=8)
    for predictor in (predictors.chained(), predictors.direct()):
        with pytest.raises(ValueError, match=r"\['h'\].*no derivative"):
            feedback(threshold_loss, batch, predictor=predictor, teacher="losses").init(
                params
            )
    tx = feedback(
        threshold_loss,
        batch,
        predictor=direct(),
        teacher="losses",
        num_samples=8,
        sigma=0.5,
    )
    state = tx.init(params)
    gradient, after = tx.update(None, state, params, batch=batch)
    assert jnp.abs(gradient["w1"]).max() > 0
    assert (
        relative_error(
            after.inner.weights["h"]["matrix"], state.inner.weights["h"]["matrix"]
        )
        > 1
    )


def scalar_loss(params, batch):
    return problems.mlp_loss(params, batch).mean()


def zero_one(params, batch):
    return (problems.mlp_loss(params, batch) > 1).astype(jnp.float64)


@pytest.mark.parametrize(
    "loss_fn, message",
    [
        (problems.linear_loss, "a node before the last one"),
        (scalar_loss, "one loss per example"),
        (zero_one, "no derivative at the last node, 'y'"),
    ],
)
def test_objectives_without_feedback_are_refused(loss_fn, message):
    with pytest.raises(ValueError, match=message):
        feedback(loss_fn).init(PARAMS)


def normed_loss(params, batch):
    """The scale has weight noise: its derivative would cross the last kernel."""
    h = jnp.tanh(batch["x"] @ params["w1"]) * params["scale"][None]
    return jnp.sum((h @ params["w2"] - batch["t"]) ** 2, axis=1)


@pytest.mark.parametrize("teacher", ["losses", "responses", "jvp"])
def test_with_weight_noise_it_is_unbiased_too(teacher):
    params = {k: PARAMS[k] for k in ("w1", "w2")} | {"scale": jnp.arange(3.0) + 0.5}
    tx = feedback(
        normed_loss,
        shrinkage=1.0,
        teacher=teacher,
        num_samples=2,
        sigma=1e-3,
        antithetic=True,
    )
    state = with_weights(tx, params, jax.tree.map(lambda p: p + 0.5, params))
    keys = jax.random.split(jax.random.key(5), 2048)
    one = lambda key: tx.estimator.estimate(key, params, BATCH, state).gradient  # noqa: E731
    found = jax.jit(jax.vmap(one))(keys)
    assert mean_gate(found, problems.gradient(normed_loss, params, BATCH)).passed


def test_a_direct_predictor_refuses_weight_noise():
    with pytest.raises(ValueError, match=r"\['scale'\] are shared by the batch"):
        feedback(normed_loss, predictor=direct(), teacher="losses").init(
            {**PARAMS, "scale": jnp.ones(3)}
        )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"teacher": "oracle"}, "teacher='oracle'"),
        ({"shrinkage": 1.5}, "shrinkage=1.5"),
        ({"num_samples": 3, "antithetic": True}, "multiple of 2"),
        ({"sigma": 0.0}, "sigma=0.0"),
    ],
)
def test_bad_arguments_are_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        feedback(**kwargs)


def test_unknown_gate_is_told():
    with pytest.raises(ValueError, match="gate='none'"):
        predictors.direct(gate="none")


def recurrent_loss(params, batch):
    """The last node is read by its own block, at the next step."""

    def step(h, x):
        h = jnp.tanh(bpfree.node(x @ params["w1"] + h @ params["w2"], "rec"))
        return h, None

    first = bpfree.node(batch["x"] @ params["w1"], "first")
    h, _ = jax.lax.scan(step, jnp.zeros_like(first), jnp.stack([first, batch["x"]]))
    return jnp.sum(h**2, axis=1)


def test_a_last_node_that_feeds_back_is_refused():
    """The loss's own derivative is not its whole gradient."""
    with pytest.raises(ValueError, match="'rec', is read by the blocks of other"):
        feedback(recurrent_loss).init(PARAMS)


def turned(loss_fn):
    """The same loss with the batch on the last axis of its hidden node."""

    def loss(params, batch):
        h = bpfree.node((batch["x"] @ params["w1"]).T, "h", batch_axis=1)
        return loss_fn(params, batch, jnp.tanh(h).T)

    return loss


@pytest.mark.parametrize("per", ["channel", "position"])
def test_the_batch_may_stand_last(per):
    def tail(params, batch, h):
        y = bpfree.node(h @ params["w2"], "y")
        return jnp.sum((y - batch["t"]) ** 2, axis=1)

    def straight(params, batch):
        return tail(params, batch, jnp.tanh(bpfree.node(batch["x"] @ params["w1"], "h")))

    params, found = {k: PARAMS[k] for k in ("w1", "w2")}, []
    for loss_fn in (turned(tail), straight):
        tx = feedback(loss_fn, predictor=direct(per=per), teacher="losses")
        state = tx.init(params)
        assert state.inner.weights["h"]["slope"].shape == (3,)
        found.append(tx.update(None, state, params, batch=BATCH)[0])
    assert_close(*found, rtol=1e-6, atol=1e-9)


def test_the_state_does_not_hold_the_models_arrays():
    weights = feedback().init(PARAMS).inner.weights
    for mine, theirs in zip(
        jax.tree.leaves(weights), jax.tree.leaves(PARAMS), strict=True
    ):
        assert mine.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()


def test_nodes_may_come_from_a_generator():
    assert feedback(nodes=(n for n in ("h", "y"))).init(PARAMS) is not None


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"predictor": predictors.chained}, "predictors.chained"),
        ({"fit": 1e-3}, "fit=0.001"),
        ({"sigma": None}, "got None"),
    ],
)
def test_newcomers_are_told(kwargs, message):
    with pytest.raises(ValueError, match=message):
        feedback(**kwargs)


@pytest.mark.parametrize("last", [False, True])
def test_a_while_loop_behind_a_node_is_refused_in_our_words(last):
    def loss_fn(params, batch):
        def turns(x):
            step = lambda c: (c[0] + 1, jnp.tanh(c[1]))  # noqa: E731
            return jax.lax.while_loop(lambda c: c[0] < 2, step, (0, x))[1]

        h = batch @ params["w"]
        y = (jnp.tanh(h) if last else turns(h)) @ params["v"]
        return ((turns(y) if last else y) ** 2).sum(1)

    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
    batch = jnp.ones((5, 3))
    tx = bpfree.learned_feedback(loss_fn, example_batch=batch)
    with pytest.raises(ValueError, match="a while_loop .* has none in reverse"):
        jax.eval_shape(lambda p: tx.update(None, tx.init(p), p, batch=batch), params)


def test_a_callback_behind_a_node_is_refused_in_our_words():
    def loss_fn(params, batch):
        h = batch @ params["w"]
        h = jax.pure_callback(np.tanh, h, h, vmap_method="sequential")
        return ((h @ params["v"]) ** 2).sum(1)

    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
    tx = bpfree.learned_feedback(loss_fn, example_batch=jnp.ones((5, 3)))
    with pytest.raises(ValueError, match="a callback to the host there has none"):
        tx.init(params)


@pytest.mark.parametrize("name", ["mlp", "conv", "recurrent"])
@pytest.mark.parametrize("shrinkage", [0.0, 1.0])
def test_the_predictor_may_learn_from_fewer_examples(name, shrinkage):
    """Its slope is that of the batch of every second example, with the same weights.

    The estimate is the one of all examples; the gate sees a fit to the wrong half.
    """
    model, shape = SHAPES[name]
    x = np.random.default_rng(0).normal(size=(4, *shape[1:]))
    params = model.init(jax.random.key(0), x)["params"]
    loss_fn, batch = squares(model), {"x": x, "label": model.apply({"params": params}, x)}
    every = lambda start: jax.tree.map(lambda a: a[start::2], batch)  # noqa: E731

    def made(batch, **options):
        options |= {"fit": optax.identity(), "sigma": 1e-3, "shrinkage": shrinkage}
        tx = feedback(loss_fn, batch, teacher="jvp", **options)
        weights = jax.tree.map(lambda w: w + 0.3, tx.init(params).inner.weights)
        state = with_weights(tx, params, weights)
        gradient, after = tx.update(None, state, params, batch=batch)
        return gradient, jax.tree.map(jnp.subtract, after.inner.weights, weights)

    gradient, slope = made(batch, fit_stride=2)
    assert_close(gradient, made(batch)[0], rtol=1e-12, atol=1e-12)
    assert_close(slope, made(every(0))[1], rtol=1e-9, atol=1e-12)
    assert relative_error(slope, made(every(1))[1]) > 0.01


def test_what_has_no_fewer_examples_is_refused_at_init():
    with pytest.raises(ValueError, match="fit_stride=2 must be 1, or more with teacher"):
        feedback(fit_stride=2, teacher="responses")
    with pytest.raises(ValueError, match="fit_stride=0 must be 1"):
        feedback(fit_stride=0)
    with pytest.raises(ValueError, match="fit_stride=2 must divide the batch of 5"):
        feedback(fit_stride=2).init(PARAMS)
    turned = jax.tree.map(lambda a: a[:4].T, BATCH)

    def loss_fn(params, batch):  # the examples stand on the last axes
        return problems.mlp_loss(params, jax.tree.map(jnp.transpose, batch))

    with pytest.raises(ValueError, match="one example in 2 along the first axes"):
        feedback(loss_fn, turned, fit_stride=2).init(PARAMS)
