"""Sigma: per node, learned, refused where rounding swallows it; and one forward pass."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental import io_callback

import bpfree
from bpfree.estimators.reading import find_state
from tests import problems
from tests import statistics as gates

PARAMS, BATCH = problems.mlp_params(), problems.mlp_batch()
LINEAR = problems.linear_params()


# ---------------------------------------------------------------------- one forward pass


def count_passes(**options):
    """Forward passes that one update makes, counted on the host, and the update."""
    calls = []

    def loss(params, batch):
        y = bpfree.node(batch["x"] @ params["w1"], "y")
        losses = jnp.sum((y - batch["t"]) ** 2, axis=1)
        io_callback(lambda _: calls.append(1), None, jax.lax.stop_gradient(losses))
        return losses

    tx = bpfree.likelihood_ratio(loss, **options)
    update = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=BATCH))
    gradient, state = update(LINEAR)
    jax.block_until_ready(gradient)
    jax.effects_barrier()
    return len(calls), gradient, state


@pytest.mark.parametrize(
    "passes, options",
    [
        (1, {"num_samples": 1, "baseline": "none"}),
        (6, {"num_samples": 6, "baseline": "none"}),
        (1, {"num_samples": 1, "baseline": "batch"}),
        (2, {"num_samples": 2, "baseline": "none", "antithetic": True}),
        (2, {"num_samples": 1, "baseline": "clean"}),
        (2, {"num_samples": 1, "baseline": "none", "pairing": "clean"}),
        (5, {"num_samples": 2, "baseline": "leave_one_out"}),  # losses, then credit
    ],
)
def test_forward_passes_of_an_update(passes, options):
    found, gradient, state = count_passes(sigma=1.0, **options)
    assert found == passes
    assert gradient["w1"].any() and jnp.isfinite(bpfree.value(state))


@pytest.mark.usefixtures("optimized")
def test_one_forward_pass_costs_one_forward_pass():
    """XLA's own count: the forward products, and one weight gradient per layer."""
    width = 512
    params = problems.mlp_params(jnp.float32, width)
    batch = problems.mlp_batch(32, jnp.float32, width)
    tx = bpfree.likelihood_ratio(
        problems.mlp_loss, num_samples=1, baseline="none", sigma=1.0
    )
    update = lambda p: tx.update(None, tx.init(p), p, batch=batch)[0]  # noqa: E731
    flops = jax.jit(update).lower(params).compile().cost_analysis()["flops"]
    product = 2 * 32 * width * width
    assert 4 * product < flops < 5 * product  # of 2 layers: forward, weight gradient


def test_value_of_one_forward_pass_is_the_mean_noisy_loss():
    tx = bpfree.likelihood_ratio(
        problems.linear_loss, num_samples=4096, baseline="none", sigma=2.0
    )
    _, state = tx.update(None, tx.init(LINEAR), LINEAR, batch=BATCH)
    clean = problems.linear_loss(LINEAR, BATCH).mean()
    assert float(bpfree.value(state)) == pytest.approx(
        float(clean) + 0.5 * 3 * 4, rel=0.1
    )


def test_faults_are_found_without_a_clean_pass():
    tx = bpfree.likelihood_ratio(
        problems.mlp_loss, num_samples=2, baseline="none", sigma=0.1
    )
    broken = PARAMS | {"w2": PARAMS["w2"] * jnp.nan}
    _, state = tx.update(None, tx.init(broken), broken, batch=BATCH)
    text = bpfree.fault_message(state, problems.mlp_loss, broken, BATCH)
    assert text.startswith("step 0: node 'y' is not finite")


def test_batch_baseline_needs_noise_of_each_example():
    def shared(params, batch):
        w = bpfree.node(params["w1"], "w", batch_axis=None)
        return jnp.sum((batch["x"] @ w - batch["t"]) ** 2, axis=1)

    for loss in (shared, lambda p, b: problems.linear_loss(p, b).mean()):
        tx = bpfree.likelihood_ratio(loss, baseline="batch", nodes=None)
        with pytest.raises(ValueError, match="compares the examples of a batch"):
            tx.update(None, tx.init(LINEAR), LINEAR, batch=BATCH)
    tx = bpfree.node_perturbation(
        problems.linear_loss, baseline="batch", credit=bpfree.causal()
    )
    with pytest.raises(ValueError, match="independent of a node's noise"):
        tx.update(None, tx.init(LINEAR), LINEAR, batch=BATCH)


# ------------------------------------------------------------------- per node and learned


def test_a_mapping_gives_every_node_its_own_sigma():
    """Common random numbers: it is the estimate with the nodes rescaled."""
    sigma = {"h": 0.1, "y": lambda step: 0.4}
    one = bpfree.likelihood_ratio(problems.mlp_loss, num_samples=8, sigma=0.1)
    both = bpfree.likelihood_ratio(problems.mlp_loss, num_samples=8, sigma=sigma)
    alone = bpfree.likelihood_ratio(
        problems.mlp_loss, num_samples=8, sigma={"h": 0.1, "y": 0.1}
    )
    first, second, third = (
        problems.estimates(tx, PARAMS, BATCH, 1) for tx in (one, both, alone)
    )
    gates.assert_close(first, third, rtol=0.0)
    assert not jnp.allclose(first["w2"], second["w2"])


@pytest.mark.parametrize("names", [{"h": 0.1}, {"h": 0.1, "z": 0.1}])
def test_a_mapping_names_every_node(names):
    tx = bpfree.likelihood_ratio(problems.mlp_loss, sigma=names)
    with pytest.raises(ValueError, match=r"those to be perturbed are \['h', 'y'\]"):
        tx.update(None, tx.init(PARAMS), PARAMS, batch=BATCH)


def slopes(loss, params, sigma, repeats, **options):
    """Independent estimates of {node: dJ / d log sigma}."""
    tx = bpfree.likelihood_ratio(
        loss,
        sigma=sigma,
        sigma_optimizer=optax.sgd(1.0),
        example_batch=BATCH,
        **options,
    )
    state = tx.init(params)

    def one(key):
        inner = tx.estimator.estimate(key, params, BATCH, state).state
        return jax.tree.map(jnp.subtract, state.inner.log_sigma, inner.log_sigma)

    keys = jax.random.split(jax.random.key(0), repeats)
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(jax.vmap(one))(keys)


@pytest.mark.parametrize("noise", ["gaussian", "laplace", "student_t"])
def test_slope_of_sigma_of_a_linear_layer(noise):
    """J = clean + sum of sigma_j^2 / 2: dJ / d log sigma_j = sigma_j^2."""
    found = slopes(problems.linear_loss, LINEAR, 0.7, 4096, num_samples=32, noise=noise)
    gate = gates.mean_gate(found, {"y": jnp.full((3,), 0.49)})
    assert gate.passed and gate.error < 0.02, gate


@pytest.mark.parametrize("pairing", ["clean", "noisy"])
def test_slope_of_sigma_of_a_net(pairing):
    """Against autodiff through the noise."""
    inject = bpfree.inject(problems.mlp_loss)
    logs = {name: jnp.full((3,), jnp.log(0.4)) for name in ("h", "y")}

    def loss(logs, key):
        keys = dict(zip(("h", "y"), jax.random.split(key), strict=True))
        deltas = {
            n: jnp.exp(logs[n])[None] * jax.random.normal(keys[n], (5, 3)) for n in logs
        }
        return inject(PARAMS, BATCH, deltas)[0].mean()

    def mean(key):
        keys = jax.random.split(key, 64)
        return jax.grad(lambda s: jax.vmap(loss, (None, 0))(s, keys).mean())(logs)

    truth = jax.jit(jax.vmap(mean))(jax.random.split(jax.random.key(5), 1024))
    found = slopes(problems.mlp_loss, PARAMS, 0.4, 2048, num_samples=64, pairing=pairing)
    gate = gates.mean_gate(found, truth, truth_repeats=True)
    assert gate.passed and gate.error < 0.05, gate


def test_a_learned_sigma_moves_and_trains():
    """Of a quadratic loss it shrinks: noise only costs there."""
    tx = bpfree.likelihood_ratio(
        problems.linear_loss,
        sigma=0.5,
        sigma_optimizer=problems.adam(0.01),
        example_batch=BATCH,
    )
    chain = optax.chain(tx, problems.adam(0.03))
    _, state = problems.train(chain, LINEAR, BATCH, steps=50)
    log_sigma = find_state(state).inner.log_sigma["y"]
    assert log_sigma.shape == (3,) and (log_sigma < jnp.log(0.45)).all()


def test_a_learned_sigma_needs_shapes():
    tx = bpfree.likelihood_ratio(
        problems.mlp_loss, sigma_optimizer=optax.sgd(0.1), sigma=0.1
    )
    with pytest.raises(ValueError, match="pass example_batch="):
        tx.init(PARAMS)


# ---------------------------------------------------------------------------- resolution


def half_loss(params, batch):
    """A net in bfloat16 with losses in float32."""
    h = jnp.tanh(bpfree.node(batch["x"] @ params["w1"] + params["b1"][None], "h"))
    y = bpfree.node(h @ params["w2"] + params["b2"][None], "y")
    return jnp.sum((y - batch["t"]).astype(jnp.float32) ** 2, axis=1)


HALF = {k: v for k, v in problems.mlp_params(jnp.bfloat16, 16).items() if k != "scale"}
HALF_BATCH = problems.mlp_batch(32, jnp.bfloat16, 16)


def cosine(sigma):
    """Of the mean of 16 estimates with the gradient in float64."""
    tx = bpfree.node_perturbation(
        half_loss, num_samples=256, sigma=lambda step: sigma, noise="gaussian"
    )
    state = tx.init(HALF)

    def one(key):
        return tx.estimator.estimate(key, HALF, HALF_BATCH, state).gradient

    found = jax.vmap(one)(jax.random.split(jax.random.key(0), 16))
    mean = [g.astype(jnp.float64).mean(0).ravel() for g in jax.tree.leaves(found)]
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (HALF, HALF_BATCH))

    def loss(params):
        return half_loss(params, wide[1]).astype(jnp.float64).mean()

    truth = [g.ravel() for g in jax.tree.leaves(jax.grad(loss)(wide[0]))]
    a, b = jnp.concatenate(mean), jnp.concatenate(truth)
    return a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)


def test_a_sigma_above_the_limit_works_and_far_below_it_does_not():
    """In bfloat16, with values of size 1; the sigmas share one program."""
    limit = 0.5 * 2.0**-7
    above, below = jax.jit(jax.vmap(cosine))(jnp.asarray([4 * limit, limit / 50]))
    assert above > 0.95
    assert below < 0.5


@pytest.mark.parametrize("make", [bpfree.node_perturbation, bpfree.likelihood_ratio])
def test_a_concrete_sigma_below_the_resolution_is_an_error(make):
    message = r"sigma=0.001 is lost to rounding in node 'h', bfloat16.*is 0.0039"
    tx = make(half_loss, sigma=1e-3)
    with pytest.raises(ValueError, match=message):
        tx.update(None, tx.init(HALF), HALF, batch=HALF_BATCH)
    tx = make(half_loss, sigma=0.004)
    jax.eval_shape(lambda: tx.update(None, tx.init(HALF), HALF, batch=HALF_BATCH))


def test_losses_in_half_precision_count_too():
    def loss(params, batch):
        return problems.linear_loss(params, batch).astype(jnp.float16)

    tx = bpfree.node_perturbation(loss, sigma=1e-4)
    with pytest.raises(ValueError, match="in the losses, float16.*0.00049"):
        tx.update(None, tx.init(LINEAR), LINEAR, batch=BATCH)


@pytest.mark.parametrize(
    "precision, safe", [("tensorfloat32", 0.00049), ("bfloat16", 0.0039)]
)
def test_the_precision_of_products_counts(precision, safe):
    """On GPUs and TPUs these are the defaults for float32."""
    params, batch = problems.mlp_params(jnp.float32), problems.mlp_batch(5, jnp.float32)
    tx = bpfree.node_perturbation(problems.mlp_loss, sigma=1e-4)
    shapes = lambda: jax.eval_shape(  # noqa: E731
        lambda: tx.update(None, tx.init(params), params, batch=batch)
    )
    with jax.default_matmul_precision(precision):
        with pytest.raises(ValueError, match=f"smallest safe sigma.*is {safe}"):
            shapes()
    with jax.default_matmul_precision("highest"):
        shapes()


@pytest.mark.parametrize("baseline", ["clean", "none"])
def test_a_scheduled_sigma_that_values_outgrow_is_a_fault(baseline):
    """The values decide: ten times larger ones need ten times the sigma."""
    large = HALF | {"w2": 100 * HALF["w2"]}
    tx = bpfree.likelihood_ratio(
        half_loss, num_samples=2, sigma=lambda step: 0.05, baseline=baseline
    )
    update = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=HALF_BATCH)[1])
    assert bpfree.fault_message(update(HALF), half_loss, HALF, HALF_BATCH) is None
    text = bpfree.fault_message(update(large), half_loss, large, HALF_BATCH)
    values = bpfree.record(half_loss)(large, HALF_BATCH)[1]["y"].astype(jnp.float32)
    safe = 0.5 * 2.0**-7 * float(jnp.sqrt(jnp.mean(values**2)))
    assert text.startswith("step 0: the noise is lost to rounding at node 'y'")
    assert f"smallest safe sigma is {safe:.2g}" in text


def test_signs_are_refused_without_a_baseline():
    with pytest.raises(ValueError, match="signs need a centred loss"):
        bpfree.approximated_likelihood_ratio(problems.mlp_loss, baseline="none")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("options", [{}, {"layerwise": True}, {"redraw": True}])
def test_signs_are_credited_with_how_far_they_moved_values_of_16_bits(dtype, options):
    """One entry per example and a linear loss: every sample is the gradient itself.

    A sigma of 1.3 spacings above 1 moves values by .78 or 1.56 of it, and by less below.
    """
    spacing = float(jnp.finfo(dtype).eps)
    x = jnp.array([[0.3], [0.7], [1.3], [1.7], [2.6], [3.4]], dtype)
    slope = jnp.arange(1.0, 7.0)

    def loss_fn(params, batch):
        y = bpfree.node(batch["x"] @ params["w"].astype(dtype), "y")
        return (y[:, 0].astype(jnp.float64) - x[:, 0].astype(jnp.float64)) * slope

    params, batch = {"w": jnp.ones((1, 1), jnp.float32)}, {"x": x}
    tx = bpfree.node_perturbation(loss_fn, num_samples=1, sigma=1.3 * spacing, **options)
    found = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=batch)[0])(params)
    right = (x[:, 0].astype(jnp.float64) * slope).mean()
    assert abs(float(found["w"][0, 0]) / right - 1) < 4 * spacing
