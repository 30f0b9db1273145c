"""Where examples stand: nodes keep noise for each example, in the loops of other people.

Every case is checked exactly, as in the zoo: the pull of the true node gradients is the
true gradient, and noise of one example moves no other example's loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bpfree
from tests.zoo import checks
from tests.zoo.case import Case, cross_entropy, labels, normal, weight

PARAMS = {
    "w1": weight(0, 4, 4, 6),
    "b1": weight(1, 6, 6),
    "w2": weight(2, 6, 6, 3),
    "w3": weight(3, 6, 6, 6),
}
B = 8


def _net(params, x, drop=1.0):
    h = jnp.tanh(x @ params["w1"] + params["b1"]) * drop
    return h @ params["w2"]


def _losses(params, part):
    return cross_entropy(_net(params, part["x"]), part["label"])


def _parts(batch, *sizes):
    return jax.tree.map(lambda a: a.reshape(*sizes, *a.shape[1:]), batch)


def mapped(params, batch, key):
    return lax.map(lambda part: _losses(params, part), _parts(batch, 4, 2)).ravel()


def mapped_by_size(params, batch, key):
    def one(part):
        return _losses(params, jax.tree.map(lambda a: a[None], part))[0]

    return lax.map(one, batch, batch_size=2)


def for_devices(params, batch, key):
    return jax.vmap(lambda part: _losses(params, part))(_parts(batch, 2, 4)).ravel()


def nested(params, batch, key):
    """Two devices, each of which goes through two micro-batches, rematerialised."""
    part = jax.checkpoint(lambda part: _losses(params, part))
    share = jax.jit(lambda share: lax.map(part, share))
    return jax.vmap(share)(_parts(batch, 2, 2, 2)).ravel()


def interleaved(params, batch, key):
    """Every second example in one part."""
    parts = jax.tree.map(lambda a: a.swapaxes(0, 1), _parts(batch, 4, 2))
    return lax.map(lambda part: _losses(params, part), parts).T.ravel()


def carrying(params, batch, key):
    """A key that goes from part to part, and a sum that only aux reads."""

    def step(carry, part):
        (key, total), (key, mine) = carry, jax.random.split(carry[0])
        drop = jax.random.bernoulli(mine, 0.8, (2, 6)).astype(jnp.float64)
        losses = cross_entropy(_net(params, part["x"], drop), part["label"])
        return (key, total + losses.sum()), losses

    start = (key, jnp.zeros(()))
    (_, total), losses = lax.scan(step, start, _parts(batch, 4, 2))
    return losses.ravel(), {"total": total}


def recurrent_parts(params, batch, key):
    """A loop over time in the loop over parts."""

    def losses(part):
        def step(h, _):
            return jnp.tanh(part["x"] @ params["w1"] + h @ params["w3"]), None

        h, _ = lax.scan(step, jnp.zeros((4, 6)), None, length=3)
        return cross_entropy(h @ params["w2"], part["label"])

    return lax.map(losses, _parts(batch, 2, 4)).ravel()


def collective(params, batch, key):
    """Batch normalisation by collectives over a vmapped axis, in remat."""

    def one(x, label):
        @jax.checkpoint
        def normed(h):
            centred = h - lax.pmean(h, "batch")
            return centred / jnp.sqrt(lax.pmean(centred**2, "batch") + 1e-3)

        h = jnp.tanh(normed(x @ params["w1"]) + params["b1"])
        return cross_entropy((h @ params["w2"])[None], label[None])[0]

    return jax.vmap(one, axis_name="batch")(batch["x"], batch["label"])


def one_branch(params, batch, key):
    """A branch is given all parameters and reads one of them."""

    def deeper(params, h):
        return jnp.tanh(h @ params["w3"])

    h = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    h = lax.cond(batch["x"].sum() > 0, deeper, lambda params, h: h, params, h)
    return cross_entropy(h @ params["w2"], batch["label"])


def sorted_between(params, batch, key):
    """Examples that change their order: nodes behind it have noise for each again."""
    h = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    h = h[jnp.argsort(batch["x"][:, 0])]
    return cross_entropy(jnp.tanh(h @ params["w3"]) @ params["w2"], batch["label"])


def tiled(params, batch, key):
    """Copies of the whole batch follow each other: views, whose outputs are averaged."""
    x = jnp.tile(batch["x"], (3, 1)) + jnp.repeat(jnp.arange(3.0), B)[:, None]
    logits = _net(params, x).reshape(3, B, -1)
    return cross_entropy(logits.mean(0), batch["label"])


def _distances(anchor, near, far):
    return jnp.square(anchor - near).sum(-1) - jnp.square(anchor - far).sum(-1)


def packed_by_kind(params, batch, key):
    """All anchors, then all that are near, then all that are far, in one array."""
    return jax.nn.softplus(_distances(*_net(params, batch["triplets"]).reshape(3, B, -1)))


def packed_by_kind_in_slices(params, batch, key):
    y = _net(params, batch["triplets"])
    return jax.nn.softplus(_distances(y[:B], y[B : 2 * B], y[2 * B :]))


def packed_by_example(params, batch, key):
    """The three of an example side by side."""
    y = _net(params, batch["triplets"])
    return jax.nn.softplus(_distances(y[0::3], y[1::3], y[2::3]))


BY_EXAMPLE = {
    mapped: "w1 w2",
    mapped_by_size: "w1 w2",
    for_devices: "w1 w2",
    nested: "w1 w2",
    interleaved: "w1 w2",
    carrying: "w1 w2",
    recurrent_parts: "w1 w2",
    collective: "w1 w2",
    one_branch: "w1 w2",
    sorted_between: "w2 w3",
    tiled: "w1 w2",
    packed_by_kind: "w1 w2",
    packed_by_kind_in_slices: "w1 w2",
    packed_by_example: "w1 w2",
}


@pytest.fixture(autouse=True)
def usual_numerics():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def case(loss_fn) -> Case:
    batch = {"x": normal(5, B, 4), "label": labels(6, 3, B)}
    if "packed" in getattr(loss_fn, "__name__", ""):
        batch = {"triplets": normal(7, 3 * B, 4)}
    return Case(loss_fn, PARAMS, batch, jax.random.key(0))


@pytest.mark.parametrize("loss_fn", BY_EXAMPLE)
def test_nodes_have_noise_for_each_example(loss_fn):
    given = case(loss_fn)
    found = bpfree.blocks(loss_fn, given.params, *checks.arguments(given))
    by_example = {block.name for block in found if block.noise == "example"}
    assert by_example == set(BY_EXAMPLE[loss_fn].split())
    assert sum(block.carried for block in found) == 0
    assert checks.uncovered(given) == []
    assert checks.miscredited(given) == {}
    assert checks.inexact(given) == {}


def test_a_map_over_parts_is_estimated_as_the_whole_batch_is():
    """The same noise, and the same estimate, up to the order of sums."""

    def plain(params, batch, key):
        return _losses(params, batch)

    def estimate(loss_fn):
        tx = bpfree.node_perturbation(loss_fn, num_samples=4)
        given = case(loss_fn)
        update = jax.jit(lambda p: tx.update(None, tx.init(p), p, batch=given.batch))
        return update(given.params)[0]

    for loss_fn in (mapped, interleaved):
        right, found = estimate(plain), estimate(loss_fn)
        close = jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-9), right, found)
        assert all(jax.tree.leaves(close))


def test_all_estimators_go_through_parts():
    for name, tx in checks.estimators(case(lambda p, b: mapped(p, b, None))).items():
        assert checks.stepped(tx, case(None)) == [], name


def test_parts_whose_carry_moves_stay_in_their_loop():
    """The state of one part enters the next: shared noise, which is right."""

    def loss_fn(params, batch, key):
        def step(h, part):
            h = jnp.tanh(part["x"] @ params["w1"] + h @ params["w3"])
            return h, cross_entropy(h @ params["w2"], part["label"])

        return lax.scan(step, jnp.zeros((2, 6)), _parts(batch, 4, 2))[1].ravel()

    given = case(loss_fn)
    found = bpfree.blocks(loss_fn, given.params, *checks.arguments(given))
    assert "example" not in {block.noise for block in found}
    assert checks.inexact(given) == {}


def test_marks_and_what_has_no_vmap_in_a_loop_over_parts():
    """A user's node is found its axis; a callback without `vmap` keeps the loop."""

    def marked(params, batch, key):
        def losses(part):
            h = jnp.tanh(bpfree.node(part["x"] @ params["w1"], "h"))
            return cross_entropy(bpfree.node(h @ params["w2"], "y"), part["label"])

        return lax.map(losses, _parts(batch, 4, 2)).ravel()

    def called(params, batch, key):
        def losses(part):
            h = jax.pure_callback(np.tanh, jnp.zeros((2, 6)), part["x"] @ params["w1"])
            return cross_entropy(h @ params["w2"], part["label"])

        return lax.map(losses, _parts(batch, 4, 2)).ravel()

    def carried(params, batch, key):
        def step(h, part):
            h = jnp.tanh(bpfree.node(part["x"] @ params["w1"] + h, "h"))
            return h, cross_entropy(bpfree.node(h @ params["w2"], "y"), part["label"])

        return lax.scan(step, jnp.zeros((2, 6)), _parts(batch, 4, 2))[1].ravel()

    def kinds(loss_fn):
        given = case(loss_fn)
        return {
            block.noise
            for block in bpfree.blocks(loss_fn, PARAMS, *checks.arguments(given))[:-1]
        }

    assert kinds(marked) == {"example"}
    assert checks.inexact(case(marked)) == {}
    assert "example" not in kinds(called)
    assert kinds(carried) == {"batch"}
    assert checks.inexact(case(carried)) == {}


def test_a_planted_order_of_the_parts_is_seen():
    """Losses of the parts in the wrong order: no node keeps its example's noise."""

    def shuffled(params, batch, key):
        parts = jax.tree.map(lambda a: a.swapaxes(0, 1), _parts(batch, 4, 2))
        return lax.map(lambda part: _losses(params, part), parts).ravel()

    given = case(shuffled)
    found = bpfree.blocks(shuffled, given.params, *checks.arguments(given))
    assert "example" not in {block.noise for block in found}
    assert checks.miscredited(given) == {}
