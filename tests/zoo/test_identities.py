"""Identities with a derivative of their own: noise follows their rule, or is refused."""

import jax
import jax.numpy as jnp
import pytest

import bpfree
from tests import problems
from tests.zoo import checks
from tests.zoo.case import Case, normal, weight

FACTOR = 0.7  # of the reversed gradient


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-FACTOR * g,))


@jax.custom_jvp
def by_tangents(x):
    return x


by_tangents.defjvp(lambda primals, tangents: (primals[0], -FACTOR * tangents[0]))


@jax.custom_vjp
def by_factor(x, factor):
    return x * 1.0


by_factor.defvjp(
    lambda x, factor: (by_factor(x, factor), factor),
    lambda factor, g: (-factor * g, jnp.zeros_like(factor)),
)


@jax.custom_vjp
def detached(x):  # a stop_gradient that is not called so
    return x


detached.defvjp(lambda x: (x, None), lambda _, g: (jnp.zeros_like(g),))


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))


def in_a_loop(x):
    def step(carry, row):
        return carry, reversed_gradient(row)

    return jax.lax.scan(step, None, x)[1]


def in_a_branch(x):
    return jax.lax.cond(jnp.asarray(True), reversed_gradient, jnp.tanh, x)


def adversarial(identity) -> Case:
    """A second head asks for the domain; the trunk is to hide it."""

    def loss_fn(params, batch):
        h = jnp.tanh(batch["x"] @ params["trunk"])
        domain = jnp.tanh(identity(h) @ params["wide"]) @ params["domain"]
        error = ((h @ params["head"] - batch["y"]) ** 2).sum(1)
        return error + ((domain - batch["from"]) ** 2).sum(1)

    params = {
        "trunk": weight(0, 5, 5, 6),
        "head": weight(1, 6, 6, 3),
        "wide": weight(2, 6, 6, 5),
        "domain": weight(3, 5, 5, 2),
    }
    batch = {"x": normal(1, 4, 5), "y": normal(2, 4, 3), "from": normal(3, 4, 2)}
    return Case(loss_fn, params, batch)


IDENTITIES = {
    "cotangents": reversed_gradient,
    "tangents": by_tangents,
    "factor": lambda x: by_factor(x, jnp.asarray(FACTOR, x.dtype)),
    "detached": detached,
    "jit": jax.jit(reversed_gradient),
    "vmap": jax.vmap(reversed_gradient),
    "remat": jax.checkpoint(reversed_gradient),
    "loop": in_a_loop,
    "branch": in_a_branch,
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_noise_moves_the_loss_as_the_rule_says(name):
    case = adversarial(IDENTITIES[name])
    assert checks.unfelt(case) == {}
    assert checks.inexact(case) == {}
    assert checks.miscredited(case) == {}
    assert checks.uncovered(case) == []


def test_noise_on_the_parameters_follows_the_rule():
    case = adversarial(reversed_gradient)
    tx = bpfree.weight_perturbation(case.loss_fn, num_samples=4096, sigma=1e-4)
    found = problems.estimates(tx, case.params, case.batch, 8)["trunk"].mean(0)
    right = checks.gradient(case)["trunk"]
    plain = checks.gradient(adversarial(lambda x: x))["trunk"]
    error = jnp.linalg.norm(found - right)
    assert error < 0.25 * jnp.linalg.norm(plain - right)


def test_a_rule_that_is_not_linear_is_refused():
    case = adversarial(clipped)
    tx = bpfree.node_perturbation(case.loss_fn, num_samples=2)
    with pytest.raises(ValueError, match="identity whose derivative is not linear"):
        problems.update(tx, case.params, case.batch)
    tx = bpfree.node_perturbation(case.loss_fn, num_samples=2, hold_stop_gradient=False)
    gradient, _ = problems.update(tx, case.params, case.batch)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradient))


def test_a_rule_that_is_not_linear_is_let_be_where_no_noise_arrives():
    case = adversarial(lambda x: x)

    def loss_fn(params, batch):
        return case.loss_fn(params, batch | {"x": clipped(batch["x"])})

    assert checks.unfelt(case._replace(loss_fn=loss_fn)) == {}
