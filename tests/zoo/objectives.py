"""Plain JAX: losses that are no supervised loss of one forward pass."""

import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, labels, normal, weight


def _net(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def _net_params(seed, fan_in, width, out):
    return {
        "w1": weight(seed, fan_in, fan_in, width),
        "b1": normal(seed + 1, width),
        "w2": weight(seed + 2, width, width, out),
        "b2": normal(seed + 3, out),
    }


def variational_autoencoder() -> Case:
    """One reparameterised sample; the key is an argument of the loss."""

    def loss_fn(params, batch, key):
        mean, log_var = jnp.split(_net(params["encoder"], batch["x"]), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        back = _net(params["decoder"], mean + jnp.exp(log_var / 2) * noise)
        divergence = 0.5 * (mean**2 + jnp.exp(log_var) - 1 - log_var).sum(-1)
        return ((back - batch["x"]) ** 2).sum(-1) + divergence

    params = {"encoder": _net_params(0, 5, 6, 4), "decoder": _net_params(5, 2, 6, 5)}
    return Case(loss_fn, params, {"x": normal(10, 4, 5)}, jax.random.key(11))


def coupling_flow() -> Case:
    """Affine coupling layers; the negative log-likelihood of each example."""

    def loss_fn(params, batch):
        x, log_det = batch["x"], 0.0
        for i, layer in enumerate(params):
            kept, moved = x[:, i % 2 :: 2], x[:, (i + 1) % 2 :: 2]
            log_scale, shift = jnp.split(_net(layer, kept), 2, axis=-1)
            log_scale = jnp.tanh(log_scale)
            moved = moved * jnp.exp(log_scale) + shift
            x = x.at[:, (i + 1) % 2 :: 2].set(moved)
            log_det = log_det + log_scale.sum(-1)
        return 0.5 * (x**2).sum(-1) - log_det

    return Case(
        loss_fn, [_net_params(i, 2, 6, 4) for i in (0, 5, 9)], {"x": normal(20, 4, 4)}
    )


def solving_flow() -> Case:
    """Triangular solves with a weight, of columns that are examples, and of rows."""

    def loss_fn(params, batch):
        lower = jnp.tril(params["lower"], -1) + jnp.diag(jnp.exp(params["diagonal"]))
        x = jax.scipy.linalg.solve_triangular(lower, batch["x"].T, lower=True)
        x = jnp.arcsinh(x).T @ params["mix"]
        upper = jnp.triu(params["upper"], 1) + 2 * jnp.eye(4)
        x = jax.lax.linalg.triangular_solve(upper, jnp.tanh(x), left_side=False)
        log_det = jnp.linalg.slogdet(params["mix"])[1] - params["diagonal"].sum()
        return 0.5 * (jnp.tanh(x @ params["out"]) ** 2).sum(-1) - log_det

    params = {n: weight(i, 4, 4, 4) for i, n in enumerate(("lower", "mix", "upper"))}
    params |= {"diagonal": normal(4, 4) / 2, "out": weight(5, 4, 4, 3)}
    return Case(loss_fn, params, {"x": normal(6, 3, 4)})


def closed_form_head() -> Case:
    """Ridge regression on learned features, solved for each task of the batch."""

    def task_loss(params, x, y, queries, answers):
        def features(x):
            return jnp.tanh(x @ params["w"] + params["b"])

        seen = features(x)
        gram = seen.T @ seen + jnp.exp(params["log_ridge"]) * jnp.eye(4)
        head = jnp.linalg.solve(gram, seen.T @ y)
        return ((features(queries) @ head - answers) ** 2).mean()

    def loss_fn(params, batch):
        return jax.vmap(task_loss, (None, 0, 0, 0, 0))(params, *batch)

    params = {"w": weight(0, 2, 2, 4), "b": normal(1, 4), "log_ridge": normal(6)}
    return Case(
        loss_fn,
        params,
        (normal(2, 3, 5, 2), normal(3, 3, 5), normal(4, 3, 2, 2), normal(5, 3, 2)),
    )


def self_distillation() -> Case:
    """A student and its own, detached past as the teacher, on another view."""

    def loss_fn(params, batch):
        def encoded(x):
            return jnp.tanh(x @ params["w1"]) @ params["w2"]

        past = jax.lax.stop_gradient(0.9 * encoded(batch["other"]))
        student = jnp.tanh(encoded(batch["x"])) @ params["predict"]
        return ((student - past) ** 2).sum(-1)

    params = {"w1": weight(0, 5, 5, 6), "w2": weight(1, 6, 6, 3)}
    params |= {"predict": weight(2, 3, 3, 3)}
    return Case(loss_fn, params, {"x": normal(3, 4, 5), "other": normal(4, 4, 5)})


def policy_gradient() -> Case:
    """Actor and critic on trajectories (B, T); to autodiff the advantage is constant."""

    def loss_fn(params, batch):
        h = jnp.tanh(batch["state"] @ params["trunk"])
        value = (h @ params["critic"])[..., 0]
        advantage = jax.lax.stop_gradient(batch["target"] - value)
        actor = cross_entropy(h @ params["actor"], batch["action"]) * advantage
        critic = 0.5 * (batch["target"] - value) ** 2
        return (actor + critic).mean(-1)

    params = {
        "trunk": weight(0, 4, 4, 6),
        "actor": weight(1, 6, 6, 3),
        "critic": weight(2, 6, 6, 1),
    }
    batch = {
        "state": normal(3, 4, 4, 4),
        "action": labels(4, 3, 4, 4),
        "target": normal(5, 4, 4),
    }
    return Case(loss_fn, params, batch)


def mean_loss() -> Case:
    """The mean over the batch: one number, as most training scripts return."""

    def loss_fn(params, batch):
        return cross_entropy(_net(params, batch["x"]), batch["label"]).mean()

    batch = {"x": normal(5, 4, 4), "label": labels(6, 3, 4)}
    return Case(loss_fn, _net_params(0, 4, 6, 3), batch)
