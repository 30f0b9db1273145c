"""Haiku: `hk.transform`."""

import haiku as hk
import jax

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def mlp() -> Case:
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 6, 3])(x)))
    batch = {"x": normal(1, 4, 4), "label": labels(2, 3, 4)}

    def loss_fn(params, batch):
        return cross_entropy(model.apply(params, batch["x"]), batch["label"])

    return Case(
        loss_fn, filled(jax.eval_shape(model.init, jax.random.key(0), batch["x"])), batch
    )


def lstm() -> Case:
    """`hk.dynamic_unroll`, time in front; T = B; dropout by a key."""

    def forward(x):
        core = hk.LSTM(5)
        state = core.initial_state(x.shape[1])
        y, _ = hk.dynamic_unroll(core, x, state)
        return hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.25, y))

    model = hk.transform(forward)
    batch = {"x": normal(1, 4, 4, 3), "y": labels(2, 3, 4, 4)}

    def loss_fn(params, batch, key):
        logits = model.apply(params, key, batch["x"].swapaxes(0, 1))
        return cross_entropy(logits, batch["y"].T).mean(0)

    params = jax.eval_shape(model.init, jax.random.key(0), batch["x"])
    return Case(loss_fn, filled(params), batch, jax.random.key(3))


class Residual(hk.Module):
    def __call__(self, x):
        norm = lambda: hk.BatchNorm(True, True, 0.9)  # noqa: E731
        y = jax.nn.silu(norm()(hk.Conv2D(4, 3, with_bias=False)(x), True))
        y = norm()(hk.Conv2D(4, 3, with_bias=False)(y), True)
        return jax.nn.silu(x + y)


def resnet() -> Case:
    """Residual blocks with BatchNorm in training mode; the state is aux."""

    def forward(x):
        x = hk.Conv2D(4, 3)(x)
        for _ in range(2):
            x = Residual()(x)
        return hk.Linear(3)(x.mean((1, 2)))

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    batch = {"x": normal(1, 4, 4, 4, 2), "label": labels(2, 3, 4)}
    params, state = jax.eval_shape(model.init, jax.random.key(0), batch["x"])
    state = filled(state)

    def loss_fn(params, batch):
        logits, new = model.apply(params, state, batch["x"])
        return cross_entropy(logits, batch["label"]), new

    return Case(loss_fn, filled(params), batch)
