"""The recommendation on losses whose best step is known."""

import jax
import jax.numpy as jnp
import pytest

import bpfree
from bpfree.diagnostics import recommend, samples_for

PARAMS = {"w": jax.random.normal(jax.random.key(0), (3, 4), jnp.float64)}
BATCH = {"x": jax.random.normal(jax.random.key(1), (6, 3), jnp.float64)}
CURVATURE = 8.0


def bowl(params, batch):
    """The mean loss is CURVATURE / 2 |w|^2 for every batch."""
    return jnp.full(len(batch["x"]), CURVATURE / 2 * (params["w"] ** 2).sum())


def exact(scale):
    """Backprop, whose estimate is multiplied."""

    def loss_fn(params, batch):
        w = params["w"]
        scaled = jax.lax.stop_gradient(w) + scale * (w - jax.lax.stop_gradient(w))
        return bowl({"w": scaled}, batch)

    return lambda num_samples: bpfree.backprop(loss_fn)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_best_step_of_a_bowl(scale):
    """One step of 1 / curvature ends at its bottom; an eighth of it is recommended."""
    found = recommend(bowl, PARAMS, BATCH, candidates={"exact": exact(scale)}, repeats=2)
    assert found.best.descent == pytest.approx(1.0, abs=1e-6)
    assert found.best.descent_error < 1e-6
    assert found.best.rate == pytest.approx(1 / (8 * CURVATURE * scale), rel=1e-4)


def test_what_goes_uphill_comes_last_and_is_not_praised():
    found = recommend(
        bowl, PARAMS, BATCH, candidates={"up": exact(-1.0), "down": exact(1.0)}, repeats=2
    )
    assert [c.name for c in found.candidates] == ["down", "up"]
    assert found.candidates[1].descent < 0
    alone = recommend(bowl, PARAMS, BATCH, candidates={"up": exact(-1.0)}, repeats=2)
    assert "No candidate lowers the loss" in str(alone)


def thresholds(params, batch):
    hidden = jnp.sign(batch["x"] @ params["w"])
    return (hidden.sum(1) - 4.0) ** 2 + 1.0


def test_a_loss_without_a_derivative_gets_noise_that_crosses_its_thresholds():
    made = {
        str(sigma): lambda n, sigma=sigma: bpfree.likelihood_ratio(
            thresholds, num_samples=n, sigma=sigma
        )
        for sigma in (1e-6, 0.5)
    }
    found = recommend(thresholds, PARAMS, BATCH, candidates=made, repeats=8)
    assert found.best.name == "0.5"
    assert found.best.descent > 3 * found.best.descent_error
    assert "Use 0.5 with num_samples=" in str(found)
    assert found.estimator().init(PARAMS).count == 0


def test_candidates_that_refuse_the_loss_are_left_out():
    made = {"jvp": lambda n: bpfree.forward_gradient(thresholds, num_samples=n)}
    with pytest.raises(ValueError, match="no candidate takes .*jvp.*no derivative"):
        recommend(thresholds, PARAMS, BATCH, candidates=made, repeats=2)
    with pytest.raises(ValueError, match="repeats=1"):
        recommend(bowl, PARAMS, BATCH, repeats=1)


def test_samples_for_a_budget():
    def make(n):
        return bpfree.node_perturbation(thresholds, num_samples=n, chunk_size=1)

    spent = bpfree.diagnostics.cost
    count = samples_for(make, 40.0, PARAMS, BATCH)
    assert (
        spent(make(count), PARAMS, BATCH) <= 40.0 < spent(make(count + 1), PARAMS, BATCH)
    )
    assert samples_for(make, 40.0, PARAMS, BATCH, group=2) == count - count % 2
    assert samples_for(exact(1.0), 40.0, PARAMS, BATCH) == 32
