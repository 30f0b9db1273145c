"""What stands under a stop_gradient is a constant to differences too, unless asked."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import bpfree
from bpfree.program import stops
from tests.statistics import assert_close

PARAMS = {
    "w": jax.random.normal(jax.random.key(0), (3, 4), jnp.float64),
    "u": jax.random.normal(jax.random.key(1), (4,), jnp.float64),
}
BATCH = {
    "now": jax.random.normal(jax.random.key(2), (5, 3), jnp.float64),
    "next": jax.random.normal(jax.random.key(3), (5, 3), jnp.float64),
}


def value(params, x):
    return jnp.tanh(x @ params["w"]) @ params["u"]


def temporal_difference(params, batch):
    """The value of the next state is the target, and a constant."""
    target = batch["target"] if "target" in batch else value(params, batch["next"])
    return (1 + 0.9 * lax.stop_gradient(target) - value(params, batch["now"])) ** 2


def per_example(params, batch):
    return jax.vmap(temporal_difference, (None, 0))(params, batch)


def in_a_loop(params, batch):
    """Truncated in time: each step takes the state of the last one as a constant."""

    def step(state, x):
        state = jnp.tanh(x[:, None] * params["u"][None] + lax.stop_gradient(state))
        return state, state.sum(1)

    start = jnp.zeros((5, 4), jnp.float64)
    return (lax.scan(jax.checkpoint(step), start, batch["now"].T)[1] ** 2).sum(0)


def in_a_branch(params, batch):
    """Which branch is taken depends on the parameters; the other has no clean value."""
    y = value(params, batch["now"])

    def rounded(y):
        return y + lax.stop_gradient(jnp.round(4 * y) / 4 - y) * jnp.sin(y)

    return lax.cond(y.sum() < 0, rounded, lambda y: y * lax.stop_gradient(y), y) ** 2


def along(function, params, direction, step=1e-5):
    """Central difference of the mean loss."""
    move = lambda t: jax.tree.map(lambda p, d: p + t * d, params, direction)  # noqa: E731
    ends = (function(move(t), BATCH).mean() for t in (step, -step))
    return (next(ends) - next(ends)) / (2 * step)


@pytest.mark.parametrize(
    "loss", [temporal_difference, per_example, in_a_loop, in_a_branch]
)
def test_differences_of_the_held_loss_are_what_autodiff_gives(loss):
    direction = jax.tree.map(jnp.cos, PARAMS)
    gradient = jax.grad(lambda p: loss(p, BATCH).mean())(PARAMS)
    slope = sum((gradient[k] * direction[k]).sum() for k in PARAMS)
    held = stops.held(loss, (PARAMS, BATCH))
    assert_close(along(held, PARAMS, direction), slope, rtol=1e-6)
    seen_through = along(loss, PARAMS, direction)
    assert abs(seen_through - slope) > 0.05 * abs(slope)  # the test can tell


def test_a_branch_that_the_clean_pass_did_not_take_is_seen_through():
    """Nothing is known of it; what stands there is the value of the noisy pass."""
    moved = {"w": PARAMS["w"], "u": -PARAMS["u"]}
    signs = [float(value(p, BATCH["now"]).sum()) for p in (PARAMS, moved)]
    assert signs[0] * signs[1] < 0
    held = stops.held(in_a_branch, (PARAMS, BATCH))
    assert_close(held(moved, BATCH), in_a_branch(moved, BATCH), rtol=1e-12)


def test_the_maximum_of_a_softmax_is_not_held():
    def loss(params, batch):
        return -jax.nn.log_softmax(batch["now"] @ params["w"])[:, 0]

    assert stops.held(loss, (PARAMS, BATCH)) is loss


def update(tx, batch=BATCH):
    return jax.jit(tx.update)(None, tx.init(PARAMS), PARAMS, batch=batch)[0]


@pytest.mark.parametrize("options", [{}, {"rank": 1, "antithetic": True}])
def test_a_target_is_as_good_as_a_number_in_the_batch(options):
    given = BATCH | {"target": value(PARAMS, BATCH["next"])}
    tx = bpfree.weight_perturbation(temporal_difference, num_samples=4, **options)
    assert_close(update(tx), update(tx, given), rtol=1e-9)


@pytest.mark.parametrize("loss", [temporal_difference, per_example])
def test_a_target_has_no_nodes(loss):
    """Their noise would be held before it reaches a loss, and their signal be noise."""
    nodes = [block.name for block in bpfree.blocks(loss, PARAMS, BATCH)]
    assert nodes == ["w", "u", "(loss)"]
    update(bpfree.forward_gradient(loss, num_samples=2))  # a node in vain is refused


@jax.custom_jvp
def by_table(x, table):
    """A sine looked up in a table; its rule is about x, which the value does not read."""
    del x
    return table


@by_table.defjvp
def _by_table_rule(primals, tangents):
    return by_table(*primals), jnp.cos(primals[0]) * tangents[0]


@jax.custom_jvp
def times(x, y):
    return x * y


@times.defjvp
def _times_rule(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return times(x, y), x * dy + y * dx


@pytest.mark.parametrize("function", [by_table, times])
def test_what_a_rule_has_no_derivative_for_is_no_constant(function):
    """The factors of a solve in short; what a rule has a derivative for is held."""

    def loss(params, batch):
        h = batch["now"] @ params["w"]
        return function(h, lax.stop_gradient(jnp.sin(h))) @ params["u"]

    direction = jax.tree.map(jnp.cos, PARAMS)
    gradient = jax.grad(lambda p: loss(p, BATCH).mean())(PARAMS)
    slope = sum((gradient[k] * direction[k]).sum() for k in PARAMS)
    held = stops.held(loss, (PARAMS, BATCH))
    assert (held is loss) == (function is by_table)
    assert_close(along(held, PARAMS, direction), slope, rtol=1e-6)


@pytest.mark.parametrize("make", [bpfree.node_perturbation, bpfree.likelihood_ratio])
def test_straight_through_units_are_seen_through_on_request(make):
    def loss(params, batch, through):
        h = bpfree.node(batch["now"] @ params["w"], "h")
        rounded = h + lax.stop_gradient(jnp.round(h) - h) if through else jnp.round(h)
        return (bpfree.node(rounded @ params["u"][:, None], "out") ** 2).sum(1)

    def estimate(through, **options):
        function = lambda params, batch: loss(params, batch, through)  # noqa: E731
        return update(make(function, num_samples=8, sigma=0.5, **options))

    seen = estimate(True, hold_stop_gradient=False)
    assert_close(seen, estimate(False), rtol=1e-9)
    held = estimate(True)
    assert abs(held["w"] - seen["w"]).max() > 0.01


def test_weight_perturbation_sees_through_on_request():
    tx = bpfree.weight_perturbation(
        temporal_difference, num_samples=4, hold_stop_gradient=False
    )

    def open_loss(params, batch):
        target = value(params, batch["next"])
        return (1 + 0.9 * target - value(params, batch["now"])) ** 2

    expected = update(bpfree.weight_perturbation(open_loss, num_samples=4))
    assert_close(update(tx), expected, rtol=1e-9)


# ------------------------------------------------------------- decisions: whole numbers


def actions(params, batch):
    return (jnp.tanh(batch["now"] @ params["w"]) > batch["next"] @ params["w"]).sum(1)


def log_odds(params, batch, action):
    """A policy gradient: the score of what was drawn, times what it earned."""
    reward = action.astype(jnp.float64) - 1.5
    return reward * jnp.cos(value(params, batch["now"]) + reward)


def drawn(params, batch):
    if "action" in batch:
        return log_odds(params, batch, batch["action"])
    return log_odds(params, batch, bpfree.hold(actions(params, batch), "action"))


def drawn_in_a_branch(params, batch):
    if "action" in batch:
        return log_odds(params, batch, batch["action"])
    some = batch["now"].sum() < 1e3
    act = lambda: bpfree.hold(actions(params, batch), "action")  # noqa: E731
    action = lax.cond(some, act, lambda: jnp.zeros(5, jnp.int64))
    return log_odds(params, batch, action)


@pytest.mark.parametrize(
    "make, loss",
    [
        (bpfree.node_perturbation, drawn),
        (bpfree.likelihood_ratio, drawn),
        (bpfree.iterative_node_perturbation, drawn),
        (bpfree.weight_perturbation, drawn),
        (bpfree.weight_perturbation, drawn_in_a_branch),
    ],
)
def test_an_action_that_is_held_is_as_good_as_one_of_the_batch(make, loss):
    given = BATCH | {"action": actions(PARAMS, BATCH)}
    tx = make(loss, num_samples=4, sigma=2.0)
    moved = jax.tree.map(lambda p: p + 2.0, PARAMS)
    assert bool((actions(moved, BATCH) != given["action"]).any())  # noise would draw anew
    assert_close(update(tx), update(tx, given), rtol=1e-9)
