"""Plain JAX: no framework, weights in lists and dicts, axes folded and mapped."""

import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, labels, normal, weight


def mlp() -> Case:
    """A list of layers; the batch is as long as every layer is wide."""

    def loss_fn(params, batch):
        h = batch["x"]
        for layer in params[:-1]:
            h = jax.nn.tanh(h @ layer["w"] + layer["b"])
        return cross_entropy(h @ params[-1]["w"] + params[-1]["b"], batch["label"])

    params = [{"w": weight(i, 4, 4, 4), "b": normal(9 + i, 4)} for i in range(3)]
    return Case(loss_fn, params, {"x": normal(20, 4, 4), "label": labels(21, 4, 4)})


def folded() -> Case:
    """Batch and time in one axis for the products, apart for attention; B = T = heads."""
    size, steps, heads, width = 4, 4, 4, 8

    def project(x, w):
        y = x.reshape(size * steps, width) @ w
        return y.reshape(size, steps, heads, -1).transpose(0, 2, 1, 3)

    def loss_fn(params, batch):
        h = batch["x"]
        for layer in params["layers"]:
            q, k, v = (project(h, layer[name]) for name in "qkv")
            attention = jax.nn.softmax(q @ k.swapaxes(2, 3) / jnp.sqrt(2.0))
            mixed = (attention @ v).transpose(0, 2, 1, 3).reshape(size * steps, width)
            h = h + (mixed @ layer["out"]).reshape(h.shape)
            up = jax.nn.gelu(h.reshape(-1, width) @ layer["up"] + layer["bias"])
            h = h + (up @ layer["down"]).reshape(h.shape)
        logits = h.reshape(size * steps, width) @ params["head"]
        return cross_entropy(logits.reshape(size, steps, -1), batch["y"]).mean(1)

    def layer(seed):
        shapes = {name: (8, 8) for name in ("q", "k", "v", "out")}
        shapes |= {"up": (8, 16), "down": (16, 8), "bias": (16,)}
        return {n: weight(seed + i, 8, *s) for i, (n, s) in enumerate(shapes.items())}

    params = {"layers": [layer(0), layer(10)], "head": weight(20, 8, 8, 5)}
    batch = {"x": normal(30, size, steps, width), "y": labels(31, 5, size, steps)}
    return Case(loss_fn, params, batch)


def time_major() -> Case:
    """Time in front, folded with the batch for the first product; T = B."""
    size, steps, width = 4, 4, 5

    def loss_fn(params, batch):
        x = batch["x"].swapaxes(0, 1)
        drive = x.reshape(steps * size, -1) @ params["w_in"] + params["b"]

        def step(h, u):
            h = jnp.tanh(u + h @ params["w"])
            return h, h

        start = jnp.zeros((size, width))
        _, hidden = jax.lax.scan(step, start, drive.reshape(steps, size, width))
        logits = hidden.reshape(steps * size, width) @ params["w_out"]
        logits = logits.reshape(steps, size, -1)
        return cross_entropy(logits, batch["y"].T).sum(0)

    params = {
        "w_in": weight(0, 3, 3, width),
        "b": normal(1, width),
        "w": weight(2, width, width, width),
        "w_out": weight(3, width, width, 6),
    }
    batch = {"x": normal(4, size, steps, 3), "y": labels(5, 6, size, steps)}
    return Case(loss_fn, params, batch)


def vmapped() -> Case:
    """A model of one example; as many steps as examples."""

    def logits(params, x):  # (T, 3) -> (T, 5)
        h = jnp.tanh(x @ params["w1"] + params["b1"])
        return jnp.cumsum(h, 0) @ params["w2"] + params["b2"]

    def loss_fn(params, batch):
        out = jax.vmap(logits, (None, 0))(params, batch["x"])
        return cross_entropy(out, batch["y"]).mean(-1)

    params = {
        "w1": weight(0, 3, 3, 8),
        "b1": normal(1, 8),
        "w2": weight(2, 16, 8, 5),
        "b2": normal(3, 5),
    }
    return Case(loss_fn, params, {"x": normal(4, 4, 4, 3), "y": labels(5, 5, 4, 4)})


def vmapped_conv() -> Case:
    """Convolutions of one image, channels in front; as many channels as examples."""

    def conv(x, kernel):
        dims = ("NCHW", "OIHW", "NCHW")
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=dims
        )[0]

    def one(params, x, label):
        h = jax.nn.silu(conv(x, params["k1"]) + params["b1"][:, None, None])
        h = jax.nn.silu(conv(h, params["k2"]))
        return cross_entropy(params["w"] @ h.mean((1, 2)) + params["b2"], label)

    def loss_fn(params, batch):
        return jax.vmap(one, (None, 0, 0))(params, batch["x"], batch["label"])

    params = {
        "k1": weight(0, 9, 3, 3, 3, 3),
        "b1": normal(1, 3),
        "k2": weight(2, 9, 5, 3, 3, 3),
        "w": weight(3, 1, 4, 5),
        "b2": normal(4, 4),
    }
    return Case(loss_fn, params, {"x": normal(5, 3, 3, 4, 4), "label": labels(6, 4, 3)})


def stacked() -> Case:
    """All kernels in one array, sliced in a Python loop."""

    def loss_fn(params, batch):
        h = batch["x"]
        for i in range(3):
            h = h + jnp.tanh(h @ params["w"][i] + params["b"][i])
        return ((h @ params["head"] - batch["t"]) ** 2).sum(-1)

    params = {
        "w": weight(0, 4, 3, 4, 4),
        "b": normal(1, 3, 4),
        "head": weight(2, 4, 4, 3),
    }
    return Case(loss_fn, params, {"x": normal(3, 3, 4), "t": normal(4, 3, 3)})


def looped() -> Case:
    """The same in `fori_loop`, which slices by a traced index; B = number of layers."""

    def loss_fn(params, batch):
        def body(i, h):
            return h + jnp.tanh(h @ params["w"][i] + params["b"][i])

        h = jax.lax.fori_loop(0, 3, body, batch["x"])
        return ((h @ params["head"] - batch["t"]) ** 2).sum(-1)

    return stacked()._replace(loss_fn=loss_fn)


def batch_norm() -> Case:
    """Batch normalisation by hand: every loss depends on every example."""

    def loss_fn(params, batch):
        h = batch["x"]
        for layer in params["layers"]:
            h = h @ layer["w"]
            h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)
            h = jax.nn.silu(h * layer["scale"] + layer["shift"])
        return cross_entropy(h @ params["head"], batch["label"])

    def layer(i, width):
        scale, shift = 1 + 0.3 * normal(10 + i, 6), normal(20 + i, 6)
        return {"w": weight(i, width, width, 6), "scale": scale, "shift": shift}

    params = {"layers": [layer(0, 4), layer(1, 6)], "head": weight(2, 6, 6, 3)}
    return Case(loss_fn, params, {"x": normal(3, 5, 4), "label": labels(4, 3, 5)})


def contrastive() -> Case:
    """InfoNCE: the other examples of the batch are the negatives."""

    def tower(params, x):
        z = jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"]
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    def loss_fn(params, batch):
        a, b = (tower(params[name], batch[name]) for name in ("image", "text"))
        logits = jnp.exp(params["log_scale"]) * a @ b.T
        pairs = jnp.arange(len(a))
        return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2

    def tower_params(i):
        return {
            "w1": weight(i, 4, 4, 6),
            "b1": normal(i + 1, 6),
            "w2": weight(i + 2, 6, 6, 4),
        }

    params = {
        "image": tower_params(0),
        "text": tower_params(5),
        "log_scale": jnp.ones(()),
    }
    return Case(loss_fn, params, {"image": normal(10, 4, 4), "text": normal(11, 4, 4)})
