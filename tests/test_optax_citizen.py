"""Estimators among the idioms of optax and Flax."""

import pickle

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import bpfree
from bpfree.sampling.seeds import as_key
from tests import energies, problems
from tests.statistics import assert_close

PARAMS, BATCH = problems.mlp_params(jnp.float32), problems.mlp_batch(dtype=jnp.float32)
ZEROS = optax.tree.zeros_like(PARAMS)
LOSS = problems.mlp_loss
TRUTH = problems.gradient(LOSS, PARAMS, BATCH)


def noisy():
    return bpfree.node_perturbation(LOSS, num_samples=2)


def one(tx):
    return jax.jit(lambda: tx.update(ZEROS, tx.init(PARAMS), PARAMS, batch=BATCH))()


def test_the_value_before_the_first_step_is_no_best_loss():
    assert float(bpfree.value(noisy().init(PARAMS))) == float("inf")


def test_weight_decay_to_the_left_of_an_estimator_counts():
    tx = optax.chain(optax.add_decayed_weights(0.5), bpfree.backprop(LOSS))
    decayed = jax.tree.map(lambda g, p: g + 0.5 * p, TRUTH, PARAMS)
    assert_close(one(tx)[0], decayed, rtol=1e-5)


def test_no_incoming_updates_are_zeros():
    tx = bpfree.backprop(LOSS)
    found = tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)[0]
    assert_close(found, TRUTH, rtol=1e-5)
    with pytest.raises(ValueError, match="structure and shapes of params"):
        tx.update({}, tx.init(PARAMS), PARAMS, batch=BATCH)


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optax.MultiSteps(tx, 4),
        lambda tx: optax.apply_if_finite(tx, 5),
        optax.contrib.mechanize,
        optax.flatten,
    ],
    ids=["MultiSteps", "apply_if_finite", "mechanize", "flatten"],
)
def test_wrappers_that_read_updates_before_there_are_any(around):
    tx = around(optax.chain(noisy(), optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r"Write optax.chain\(estimator, optax\."):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match="around an estimator"):
        jax.jit(tx.init)(PARAMS)
    optax.chain(noisy(), around(optax.sgd(0.1))).init(PARAMS)


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optax.masked(tx, {k: k == "w1" for k in PARAMS}),
        lambda tx: optax.partition(
            {"train": tx, "freeze": optax.set_to_zero()},
            {k: "train" if k == "w1" else "freeze" for k in PARAMS},
        ),
    ],
    ids=["masked", "partition"],
)
def test_masked_parameters(around):
    tx = around(optax.chain(noisy(), optax.sgd(0.1)))
    with pytest.raises(ValueError, match="Write optax.chain.estimator, optax.partition"):
        tx.init(PARAMS)
    right = optax.chain(noisy(), around(optax.sgd(0.1)))
    assert bool(jnp.any(one(right)[0]["w1"] != 0))


def test_lookahead_around_an_estimator_says_what_to_write():
    tx = optax.lookahead(optax.chain(noisy(), optax.sgd(0.1)), 5, 0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    step = r"a step of its own: gradient, state = estimator.update\(None"
    with pytest.raises(ValueError, match=step):
        tx.update(ZEROS, tx.init(params), params)
    with pytest.raises(ValueError, match=step):
        optax.chain(noisy(), optax.lookahead(optax.sgd(0.1), 5, 0.5)).init(params)


def test_sam_around_an_estimator_says_what_to_write():
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    sam = optax.contrib.sam(optax.chain(noisy(), optax.sgd(0.1)), ascent)
    with pytest.raises(ValueError, match="goes to its right: .*sam.init, sam.update"):
        problems.lenient(optax.GradientTransformation(sam.init, sam.update)).update(
            ZEROS, sam.init(PARAMS), PARAMS
        )


@pytest.mark.parametrize(
    "around, message",
    [
        (lambda tx: optax.lookahead(tx, 5, 0.5), "a step of its own"),
        (lambda tx: optax.contrib.sam(tx, optax.sgd(0.05)), "goes to its right"),
        (optax.contrib.split_real_and_imaginary, "hands on no batch"),
    ],
)
def test_what_hands_on_no_batch_is_refused_before_the_first_step(around, message):
    with pytest.raises(ValueError, match=message):
        around(optax.chain(noisy(), optax.sgd(0.1))).init(PARAMS)


def test_states_are_plain_arrays():
    tx = noisy()
    state = one(tx)[1]
    update = jax.jit(lambda s: tx.update(ZEROS, s, PARAMS, batch=BATCH)[0])
    for again in (
        serialization.from_bytes(tx.init(PARAMS), serialization.to_bytes(state)),
        pickle.loads(pickle.dumps(state)),
    ):
        assert_close(again, state, rtol=0.0)
        second = update(jax.tree.map(jnp.asarray, again))
        assert_close(update(state), second, rtol=0.0)
    assert not any(map(jnp.any, jax.tree.leaves(jax.tree.map(jnp.zeros_like, state.key))))


def test_a_state_comes_back_from_orbax(tmp_path):
    tx = optax.chain(noisy(), optax.sgd(0.1, momentum=0.9))
    state = one(tx)[1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path / "state", state)
    assert_close(again, state, rtol=0.0)
    update = jax.jit(lambda s: tx.update(ZEROS, s, PARAMS, batch=BATCH)[0])
    assert_close(update(state), update(again), rtol=0.0)


# ------------------------------------------------------------ recipes, to the right of it


def test_clipping_shortens_the_estimate():
    tx = optax.chain(bpfree.backprop(LOSS), optax.clip_by_global_norm(0.25))
    norm = optax.tree.norm(TRUTH)
    assert norm > 0.25
    assert_close(one(tx)[0], jax.tree.map(lambda g: g * 0.25 / norm, TRUTH), rtol=1e-5)


def test_micro_batches_add_up_to_the_batch():
    halves = [jax.tree.map(lambda v, i=i: v[2 * i : 2 * i + 2], BATCH) for i in (0, 1)]
    steps = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    tx = optax.chain(bpfree.backprop(LOSS), problems.lenient(steps))
    state = tx.init(PARAMS)
    update = jax.jit(lambda state, half: tx.update(ZEROS, state, PARAMS, batch=half))
    first, state = update(state, halves[0])
    second, state = update(state, halves[1])
    assert optax.tree.norm(first) == 0
    four = jax.tree.map(lambda v: v[:4], BATCH)
    truth = problems.gradient(LOSS, PARAMS, four)
    assert_close(second, jax.tree.map(jnp.negative, truth), rtol=1e-5, atol=1e-6)
    assert int(state[0].count) == 2  # noise is drawn anew for every micro-batch


@pytest.mark.parametrize(
    "link",
    [
        optax.ema(0.9),
        optax.contrib.schedule_free_sgd(0.1),
        optax.inject_hyperparams(optax.adam)(0.1),
    ],
    ids=["ema", "schedule_free", "inject_hyperparams"],
)
def test_wrappers_to_the_right(link):
    updates, state = one(optax.chain(noisy(), problems.lenient(link)))
    assert all(jnp.isfinite(u).all() and (u != 0).any() for u in jax.tree.leaves(updates))
    assert_close(bpfree.value(state), LOSS(PARAMS, BATCH).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        optax.contrib.prodigy,
        lambda: optax.contrib.muon(0.1),
        lambda: optax.contrib.dowg(),
    ],
    ids=["prodigy", "muon", "dowg"],
)
def test_links_of_contrib_get_the_gradient(make):
    """What follows `backprop` moves as it does when it is fed the gradient itself."""
    alone = problems.lenient(make())
    after = optax.chain(bpfree.backprop(LOSS), problems.lenient(make()))

    @jax.jit
    def moved():
        fed, state = alone.update(TRUTH, alone.init(PARAMS), PARAMS)
        return fed, after.update(ZEROS, after.init(PARAMS), PARAMS, batch=BATCH)[0]

    assert_close(*moved(), rtol=1e-4, atol=1e-6)


def test_a_condition_around_an_estimator_holds_it_back():
    chain = optax.chain(bpfree.backprop(LOSS), optax.sgd(1.0))
    tx = problems.lenient(optax.conditionally_mask(chain, lambda step: step < 1))
    update = jax.jit(lambda state: tx.update(ZEROS, state, PARAMS, batch=BATCH))
    first, state = update(tx.init(PARAMS))
    second, _ = update(state)
    assert optax.tree.norm(first) > 0 and optax.tree.norm(second) == 0


def test_seeds_may_be_vmapped_over():
    def estimate(seed):
        tx = bpfree.node_perturbation(LOSS, num_samples=2, seed=seed)
        return tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)[0]

    many = jax.jit(jax.vmap(estimate))(jnp.arange(3))
    single = jax.jit(estimate)(1)
    assert_close(jax.tree.map(lambda v: v[1], many), single, rtol=1e-5, atol=1e-7)
    assert bool(jnp.any(many["w1"][0] != many["w1"][1]))


def test_the_plateau_starts_at_the_first_loss():
    """With a first value of 0 no loss is ever better, and the rate decays to nothing."""
    plateau = problems.lenient(optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
    tx = optax.chain(bpfree.backprop(LOSS), optax.sgd(0.01), plateau)
    params, state = PARAMS, tx.init(PARAMS)

    @jax.jit
    def step(params, state):
        value = bpfree.value(state)
        updates, state = tx.update(ZEROS, state, params, batch=BATCH, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(6):
        params, state = step(params, state)
    assert float(state[2].scale) == 1.0
    assert float(state[2].best_value) < LOSS(PARAMS, BATCH).mean()


def test_small_seeds_keep_their_stream_and_large_ones_do_not_wrap():
    words = jax.random.key_data
    assert_close(words(as_key(3)), words(jax.random.key(3)), rtol=0.0)
    assert bool(jnp.any(words(as_key(2**32 + 1)) != words(as_key(1))))
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match="seed=.* must be a whole number"):
            as_key(bad)


def test_settings_that_were_accepted_and_ignored():
    with pytest.raises(ValueError, match="baseline='batch' compares examples"):
        bpfree.weight_perturbation(LOSS, baseline="batch")
    with pytest.raises(ValueError, match="num_samples=3000000000 must be below"):
        bpfree.node_perturbation(LOSS, num_samples=3_000_000_000)


# ------------------------------------------------------------------- kinds of objectives

OF_LOSSES = {
    "backprop": bpfree.backprop,
    "node_perturbation": bpfree.node_perturbation,
    "likelihood_ratio": bpfree.likelihood_ratio,
    "approximated_likelihood_ratio": bpfree.approximated_likelihood_ratio,
    "iterative_node_perturbation": bpfree.iterative_node_perturbation,
    "activity_node_perturbation": bpfree.activity_node_perturbation,
    "weight_perturbation": bpfree.weight_perturbation,
    "forward_gradient": bpfree.forward_gradient,
    "learned_feedback": lambda f: bpfree.learned_feedback(f, example_batch=BATCH),
    "decorrelate": lambda f: bpfree.decorrelate(optax.sgd(0.1), f, example_batch=BATCH),
}
OF_ENERGIES = {
    "equilibrium_propagation": bpfree.equilibrium_propagation,
    "online_equilibrium_propagation": bpfree.online_equilibrium_propagation,
    "recurrent_backprop": bpfree.recurrent_backprop,
    "backprop_through_time": lambda e: bpfree.backprop_through_time(
        e, relaxation=energies.EXACT
    ),
}


@pytest.mark.parametrize("make", OF_LOSSES.values(), ids=OF_LOSSES)
def test_an_energy_is_no_loss_function(make):
    with pytest.raises(TypeError, match="needs a loss function.* got an energy"):
        make(energies.mlp())


@pytest.mark.parametrize("make", OF_ENERGIES.values(), ids=OF_ENERGIES)
def test_a_loss_function_is_no_energy(make):
    with pytest.raises(TypeError, match="needs an energy, .* not a function"):
        make(LOSS)


def test_measure_of_an_energy_says_what_it_needs():
    energy, params, data, _ = energies.reference()
    with pytest.raises(TypeError, match="measure .* got an energy"):
        bpfree.diagnostics.measure(bpfree.equilibrium_propagation(energy), params, data)


@pytest.mark.parametrize("make", list(OF_LOSSES.values())[:-1], ids=list(OF_LOSSES)[:-1])
def test_a_column_that_met_a_row_is_named(make):
    def loss(params, batch):
        y = bpfree.node(batch["x"] @ params["w1"][:, :1], "h")
        errors = bpfree.node(y @ params["w2"][:1, :1], "y") - batch["t"][None, :, 0]
        return errors**2  # (5, 1) - (5,), which JAX allows users

    with pytest.raises(
        ValueError, match=r"got shape \(5, 5\).* no \(5, 1\) met a \(5,\)"
    ):
        tx = make(loss)
        tx.update(ZEROS, tx.init(PARAMS), PARAMS, batch=BATCH)
