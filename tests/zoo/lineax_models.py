"""Linear solves of lineax, whose primitive JAX knows by its rules alone."""

import jax
import jax.numpy as jnp
import lineax

from tests.zoo.case import Case, normal, weight


def _case(solver, throw: bool = False) -> Case:
    """Each example solves a system whose matrix and right-hand side the net makes."""

    def loss_fn(params, batch):
        def one(x, y):
            h = jnp.tanh(x @ params["w"] + params["b"])
            matrix = lineax.MatrixLinearOperator(
                2 * jnp.eye(3) + jnp.outer(h[:3], h[:3]) + h[3] ** 2 * jnp.eye(3),
                lineax.positive_semidefinite_tag,
            )
            found = lineax.linear_solve(matrix, y + h[1:], solver, throw=throw).value
            return (jnp.tanh(found @ params["v"]) ** 2).sum()

        return jax.vmap(one)(batch["x"], batch["y"])

    params = {"w": weight(0, 5, 5, 4), "b": normal(1, 4), "v": weight(2, 3, 3, 2)}
    return Case(loss_fn, params, {"x": normal(3, 6, 5), "y": normal(4, 6, 3)})


def factors() -> Case:
    return _case(lineax.LU())


def conjugate_gradients() -> Case:
    return _case(lineax.CG(1e-12, 1e-12))


def checked() -> Case:
    """With the check of the result, in which all examples meet."""
    return _case(lineax.QR(), throw=True)
