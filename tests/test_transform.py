"""Estimators as links of optax chains, and what their state tells."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpfree
from bpfree.estimators.reading import find_state
from bpfree.sampling.seeds import from_words
from tests import problems
from tests.statistics import assert_close, relative_error

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
ZEROS = optax.tree.zeros_like(PARAMS)
LOSS = problems.mlp_loss
CLEAN_LOSS = float(LOSS(PARAMS, BATCH).mean())


def noisy(loss=LOSS, **options):
    return bpfree.node_perturbation(loss, **{"num_samples": 2, "sigma": 1e-3} | options)


def run(chain, steps, batch=BATCH):
    """(params, updates of every step, state); one compilation for all steps."""
    traces = []

    @jax.jit
    def step(params, state, batch):
        traces.append(None)
        updates, state = chain.update(ZEROS, state, params, batch=batch)
        return optax.apply_updates(params, updates), state, updates

    params, state, history = PARAMS, chain.init(PARAMS), []
    structure = jax.tree.structure(state)
    for _ in range(steps):
        params, state, updates = step(params, state, batch)
        history.append(updates)
        assert jax.tree.structure(state) == structure
    assert len(traces) == 1
    return params, history, state


def moved(updates):
    return bool(jnp.any(updates["w1"] != 0))


# ------------------------------------------------------------------------ compositions


def test_chain_with_clip_and_adam():
    links = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01))
    params, _, state = run(optax.chain(noisy(), problems.lenient(links)), steps=3)
    assert float(LOSS(params, BATCH).mean()) < CLEAN_LOSS
    assert int(find_state(state).count) == 3


def test_value_is_the_clean_loss_of_the_last_step():
    _, _, state = run(optax.chain(noisy(), problems.adam(0.0)), steps=1)
    assert float(bpfree.value(state)) == pytest.approx(CLEAN_LOSS, rel=1e-6)
    assert float(optax.tree.get(state, "value")) == float(bpfree.value(state))
    assert bpfree.value(state).dtype == jnp.float32


def test_links_that_read_the_value():
    """An estimator keeps its loss to itself; the loop hands it to a plateau rule."""
    chain = optax.chain(
        noisy(), problems.lenient(optax.contrib.reduce_on_plateau(patience=1))
    )
    state = chain.init(PARAMS)
    _, state = chain.update(ZEROS, state, PARAMS, batch=BATCH, value=jnp.float32(1.0))
    assert float(state[1].best_value) == 1.0


def test_sigma_as_a_schedule_of_the_step():
    sigmas = (0.5, 1e-3)
    scheduled = noisy(sigma=lambda step: jnp.asarray(sigmas)[step])
    for step, sigma in enumerate(sigmas):
        at_step = scheduled.init(PARAMS)._replace(count=jnp.int32(step))
        gradients = [
            tx.estimator.estimate(
                from_words(at_step.key), PARAMS, BATCH, at_step
            ).gradient
            for tx in (scheduled, noisy(sigma=sigma))
        ]
        assert_close(*gradients, rtol=1e-6)


@pytest.mark.parametrize("make", [bpfree.likelihood_ratio, bpfree.node_perturbation])
def test_inject_hyperparams_turns_sigma_into_state(make):
    injected = optax.inject_hyperparams(make, static_args=bpfree.static_args(make))(
        LOSS, sigma=0.05, num_samples=2, antithetic=True, baseline="clean"
    )
    update = jax.jit(lambda s: injected.update(ZEROS, s, PARAMS, batch=BATCH))
    state = injected.init(PARAMS)
    assert set(state.hyperparams) == {"sigma"}
    for sigma in (0.05, 0.4):
        state.hyperparams["sigma"] = jnp.asarray(sigma)
        expected, _ = jax.jit(
            lambda tx: tx.update(ZEROS, tx.init(PARAMS), PARAMS, batch=BATCH),
            static_argnums=0,
        )(make(LOSS, sigma=sigma, num_samples=2, antithetic=True))
        assert_close(update(state)[0], expected, rtol=1e-5, atol=1e-6)
    assert float(bpfree.value(update(state)[1])) == pytest.approx(CLEAN_LOSS)


def test_multi_steps_belongs_to_the_right_of_the_estimator():
    """It averages two estimates of the same params with different noise."""
    right = optax.chain(noisy(), problems.lenient(optax.MultiSteps(optax.sgd(1.0), 2)))
    _, history, state = run(right, steps=2)
    estimator = noisy()
    update = jax.jit(lambda s: estimator.update(ZEROS, s, PARAMS, batch=BATCH))
    first, between = update(estimator.init(PARAMS))
    second, _ = update(between)
    mean = jax.tree.map(lambda a, b: -(a + b) / 2, first, second)
    assert [moved(u) for u in history] == [False, True]
    assert int(find_state(state).count) == 2
    assert_close(history[1], mean, rtol=1e-5, atol=1e-6)
    assert relative_error(first, second) > 0.01


def test_named_chain_and_values_by_name():
    chain = optax.named_chain(
        ("wide", noisy(sigma=0.5)), ("narrow", noisy()), ("adam", problems.adam(0.1))
    )
    _, _, state = run(chain, steps=1)
    for name in ("wide", "narrow"):
        assert float(bpfree.value(state, name)) == pytest.approx(CLEAN_LOSS)
    with pytest.raises(ValueError, match=r"2 estimators match.*\['narrow', 'wide'\]"):
        bpfree.value(state)
    with pytest.raises(ValueError, match="0 estimators match name='adam'"):
        bpfree.value(state, "adam")


def test_a_state_without_an_estimator():
    with pytest.raises(ValueError, match="holds no bpfree estimator"):
        bpfree.value(optax.adam(0.1).init(PARAMS))


# ------------------------------------------------------------------------------ errors


def test_missing_params_and_batch():
    tx = noisy()
    with pytest.raises(ValueError, match="needs params"):
        tx.update(ZEROS, tx.init(PARAMS), batch=BATCH)
    with pytest.raises(ValueError, match="needs a batch"):
        tx.update(ZEROS, tx.init(PARAMS), PARAMS)


def test_a_concrete_sigma_must_be_positive():
    for sigma in (0.0, -0.1, float("inf"), jnp.float32(0.0)):
        with pytest.raises(ValueError, match="sigma=.* must be a positive number"):
            noisy(sigma=sigma)


# --------------------------------------------------------------------------------- aux


def loss_with_aux(params, batch):
    losses = LOSS(params, batch)
    return losses, {"worst": losses.max(), "rows": batch["x"].sum(1)}


@pytest.mark.parametrize("make", [noisy, bpfree.backprop])
@pytest.mark.parametrize("abstract", [False, True])
def test_aux_of_the_clean_pass_is_in_the_state(make, abstract):
    example = jax.eval_shape(lambda: BATCH) if abstract else BATCH
    tx = make(loss_with_aux, example_batch=example)
    before = tx.init(PARAMS)
    assert not any(np.any(a) for a in jax.tree.leaves(before.aux))
    after = jax.jit(lambda: tx.update(ZEROS, before, PARAMS, batch=BATCH)[1])()
    assert_close(after.aux, loss_with_aux(PARAMS, BATCH)[1], rtol=1e-12)


def test_aux_without_an_example_batch():
    tx = noisy(loss_with_aux)
    with pytest.raises(ValueError, match="needs example_batch="):
        tx.update(ZEROS, tx.init(PARAMS), PARAMS, batch=BATCH)


# -------------------------------------------------------------------- losses with a key


def dropped_loss(params, batch, key):
    keep = jax.random.bernoulli(key, 0.5, batch["x"].shape).astype(batch["x"].dtype)
    y = bpfree.node((keep * batch["x"]) @ params["w1"], "y")
    return (y**2).sum(1)


def test_noisy_passes_use_the_dropout_of_the_clean_pass():
    """Common random numbers: small sigma would otherwise drown in other masks."""
    params = {"w1": PARAMS["w1"]}
    tx = noisy(dropped_loss, num_samples=4096, chunk_size=512)
    update = jax.jit(lambda s: tx.update(None, s, params, batch=BATCH))
    state = tx.init(params)
    first, state = update(state)
    key = jax.random.split(jax.random.fold_in(from_words(state.key), 0))[1]
    truth = jax.grad(lambda p: dropped_loss(p, BATCH, key).mean())(params)
    assert relative_error(first, truth) < 0.1
    assert float(state.value) == pytest.approx(
        float(dropped_loss(params, BATCH, key).mean()), rel=1e-6
    )
    second, _ = update(state)
    assert relative_error(second, truth) > 0.2  # the next step has another mask
