"""diffrax: neural differential equations of one example, under vmap."""

import diffrax
import jax
import jax.numpy as jnp

from tests.zoo.case import Case, normal, weight


def _field(t, y, params):
    return jnp.tanh(y @ params["w1"] + params["b1"] + t) @ params["w2"]


def _case(final) -> Case:
    """Squared error of a readout of `final(params, start)`, for each example."""

    def loss_fn(params, batch):
        last = jax.vmap(final, (None, 0))(params, batch["x"])
        return ((last @ params["head"] - batch["t"]) ** 2).sum(-1)

    params = {
        "w1": weight(0, 4, 4, 4),
        "b1": normal(1, 4),
        "w2": weight(2, 4, 4, 4),
        "head": weight(3, 4, 4, 2),
    }
    return Case(loss_fn, params, {"x": normal(4, 4, 4), "t": normal(5, 4, 2)})


def adaptive() -> Case:
    """Dormand-Prince with error control: a loop of unknown length."""

    def final(params, y):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(_field),
            diffrax.Dopri5(),
            t0=0.0,
            t1=1.0,
            dt0=0.1,
            y0=y,
            args=params,
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            max_steps=64,
        ).ys[0]

    return _case(final)


def fixed_steps() -> Case:
    """Four steps of Heun's method, by diffrax's loop for forward mode as well."""

    def final(params, y):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(_field),
            diffrax.Heun(),
            t0=0.0,
            t1=1.0,
            dt0=0.25,
            y0=y,
            args=params,
            max_steps=4,
            adjoint=diffrax.DirectAdjoint(),
        ).ys[0]

    return _case(final)
