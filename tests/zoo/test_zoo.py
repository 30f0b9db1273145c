"""The zoo: coverage, no carried signal and the exact check for all; samples for some."""

import importlib

import jax
import jax.numpy as jnp
import pytest

import bpfree
from tests.statistics import LIMIT
from tests.zoo import FILES, NAMES, checks
from tests.zoo.case import Case

pytestmark = pytest.mark.filterwarnings("default")  # other people's warnings

# Derivatives are those of a surrogate, which finite differences do not see.
SURROGATE = {"dynamics.spiking", "spyx_models.leaky", "meetings.whole_numbers"}
# What cannot be, and the error that says so. No kernel of the first enters a product as
# it stands, so that there is nothing to decorrelate.
REFUSED = {
    (name, step): message
    for step, message, names in (
        (
            "decorrelated",
            "no kernel is left to decorrelate",
            """meetings.sums kernels.weight_norm kernels.quantised kernels.masked
            kernels.quantised_custom kernels.tied meetings.whole_numbers
            linen_variants.weight_norm""",
        ),
        (
            "learned_feedback",
            "the last node.* is shared by the batch",
            """plain.contrastive plain_variants.graph_convolution
            diffrax_models.adaptive diffrax_models.fixed_steps lineax_models.checked""",
        ),
        ("learned_feedback", "needs one loss per example", "objectives.mean_loss"),
        ("forward_gradient", "no directional derivative", "diffrax_models.adaptive"),
    )
    for name in names.split()
}
# In the default run, as the quickest of their kind; the others are slow.
QUICK = set(
    """plain.folded plain.time_major plain.vmapped plain.batch_norm plain.contrastive
    kernels.lora kernels.tied kernels.experts_dispatched dynamics.selective_ssm
    objectives.mean_loss linen.raw_params plain_variants.chosen_experts
    plain_variants.branches plain_variants.graph_convolution nnx_variants.lora
    equinox_models.mlp equinox_variants.batch_norm haiku_models.mlp
    distrax_models.masked_coupling meetings.branch meetings.scaled_statistic
    meetings.named_mean meetings.sums meetings.generator lineax_models.factors""".split()
)
SAMPLED = {"plain.folded", "plain.vmapped", "plain.batch_norm", "meetings.stopped_branch"}
STEPPED = {"plain.mlp"}
STEPS = (
    "node_perturbation layerwise likelihood_ratio activity low_rank forward_gradient "
    "learned_feedback decorrelated"
).split()


def load(name: str) -> Case:
    file, case = name.split(".")
    pytest.importorskip(FILES[file][0])
    return getattr(importlib.import_module(f"tests.zoo.{file}"), case)()


def chosen(default):
    """Every case, slow where it is not in `default`."""
    slow = pytest.mark.slow
    return [n if n in default else pytest.param(n, marks=slow) for n in NAMES]


@pytest.mark.parametrize("name", chosen(QUICK))
def test_nodes(name):
    case = load(name)
    assert checks.uncovered(case) == []
    assert checks.carried(case) == 0
    assert checks.miscredited(case) == {}
    assert checks.inexact(case) == {}
    if name not in SURROGATE:
        assert checks.unfelt(case) == {}


@pytest.mark.parametrize("name", chosen(SAMPLED))
def test_slopes(name):
    if name in SURROGATE:
        pytest.skip("its derivative is a surrogate's")
    case = load(name)
    for repeats in (64, 256, 1024, 4096):  # with a larger error the gate says nothing
        found = checks.slopes(case, repeats)
        if found["(all)"].error < 0.05:
            break
    assert found["(all)"].error < 0.05
    assert {path: s for path, s in found.items() if not s.passed} == {}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", chosen(STEPPED))
def test_step(name, step):
    case = load(name)
    if (name, step) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, step]):
            checks.stepped(checks.estimators(case)[step], case)
    else:
        assert checks.stepped(checks.estimators(case)[step], case) == []


# ------------------------------------------------------------------ planted faults


def marked(axis):
    """`plain.vmapped` at the level of the batch, with marks; T = B = 4."""
    case = load("plain.vmapped")

    def loss_fn(params, batch):
        h = batch["x"] @ params["w1"] + params["b1"]
        h = jnp.cumsum(jnp.tanh(bpfree.node(h, "h", batch_axis=axis)), 1)
        y = bpfree.node(h @ params["w2"] + params["b2"], "y")
        picked = jnp.take_along_axis(jax.nn.log_softmax(y), batch["y"][..., None], -1)
        return -picked[..., 0].mean(-1)

    return case._replace(loss_fn=loss_fn)


def test_credit_rejects_a_wrong_batch_axis():
    assert checks.miscredited(marked(axis=0)) == {}
    assert set(checks.miscredited(marked(axis=1))) == {"h"}


def test_slopes_reject_a_wrong_batch_axis():
    assert all(s.passed for s in checks.slopes(marked(axis=0)).values())
    wrong = marked(axis=1)
    assert checks.inexact(wrong) == {}  # the exact check is blind to it
    found = checks.slopes(wrong)
    assert found["w1"].slope + LIMIT * found["w1"].error < 0.5
    assert found["w2"].passed


def test_carried_rejects_a_product_without_a_node():
    case = marked(axis=0)
    assert checks.carried(case) == 0
    assert checks.carried(case, nodes=("y",)) == 1


def test_coverage_and_exactness_reject_a_dropped_parameter():
    case = marked(axis=0)

    def dropped(params, batch):
        held = params | {"w1": jax.lax.stop_gradient(params["w1"])}
        return case.loss_fn(held, batch)

    def truth(params, batch):
        return case.loss_fn(params, batch)

    assert checks.inexact(case._replace(loss_fn=truth)) == {}
    right = checks.gradient(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "gradient", lambda _: right)
        broken = case._replace(loss_fn=dropped)
        assert checks.uncovered(broken) == ["w1"]
        assert set(checks.inexact(broken)) == {"w1"}
