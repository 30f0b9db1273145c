"""distrax: a normalising flow from its bijectors, with nets in Haiku."""

import distrax
import haiku as hk
import jax
import jax.numpy as jnp

from tests.zoo.case import Case, filled, normal


def _flow():
    def conditioner():
        return hk.Sequential(
            [hk.nets.MLP([6, 8], activation=jnp.tanh), hk.Reshape((4, 2))]
        )

    def bijector(params):
        return distrax.ScalarAffine(
            shift=params[..., 0], log_scale=jnp.tanh(params[..., 1])
        )

    layers = [
        distrax.MaskedCoupling(
            mask=jnp.arange(4) % 2 == i % 2, bijector=bijector, conditioner=conditioner()
        )
        for i in range(2)
    ]
    base = distrax.Independent(distrax.Normal(jnp.zeros(4), jnp.ones(4)), 1)
    return distrax.Transformed(base, distrax.Inverse(distrax.Chain(layers)))


def masked_coupling() -> Case:
    """Negative log-likelihood; as many examples as dimensions."""
    model = hk.without_apply_rng(hk.transform(lambda x: -_flow().log_prob(x)))
    batch = {"x": normal(1, 4, 4)}

    def loss_fn(params, batch):
        return model.apply(params, batch["x"])

    return Case(
        loss_fn, filled(jax.eval_shape(model.init, jax.random.key(0), batch["x"])), batch
    )
