"""More of plain JAX: other axes, computed and chosen kernels, one graph for all."""

import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def _shaped(**shapes):
    return {n: jax.ShapeDtypeStruct(s, jnp.float64) for n, s in shapes.items()}


def _classes(size=4, width=4, classes=3):
    return {"x": normal(1, size, width), "label": labels(2, classes, size)}


def time_mixing() -> Case:
    """Time outside, examples inside, (T B, d); a product over time from the left."""
    batch = {"x": normal(1, 3, 4, 4), "label": labels(2, 3, 3)}
    params = _shaped(w1=(4, 5), b1=(5,), mix=(4, 4), w2=(5, 3), b2=(3,))

    def loss_fn(params, batch):
        size, steps, width = batch["x"].shape
        rows = batch["x"].swapaxes(0, 1).reshape(steps * size, width)
        h = jnp.tanh(rows @ params["w1"] + params["b1"]).reshape(steps, size, -1)
        h = jnp.tensordot(params["mix"], h, 1)  # over time, in front
        logits = h.reshape(steps * size, -1) @ params["w2"] + params["b2"]
        return cross_entropy(logits.reshape(steps, size, -1).mean(0), batch["label"])

    return Case(loss_fn, filled(params), batch)


def columns() -> Case:
    """Examples are columns, weights multiply from the left; a square everywhere."""
    batch = _classes(4, 4, 4)
    params = [_shaped(w=(4, 4), b=(4, 1)) for _ in range(3)]

    def loss_fn(params, batch):
        h = batch["x"].T
        for p in params[:-1]:
            h = jax.nn.relu(p["w"] @ h + p["b"])
        h = params[-1]["w"] @ h + params[-1]["b"]
        return cross_entropy(h.T, batch["label"])

    return Case(loss_fn, filled(params), batch)


def chosen_experts() -> Case:
    """Each example looks up the kernels of its two best experts."""
    params = _shaped(router=(4, 5), w1=(5, 4, 6), w2=(5, 6, 4), out=(4, 3))

    def loss_fn(params, batch):
        x = batch["x"]
        top, chosen = jax.lax.top_k(jax.nn.softmax(x @ params["router"]), 2)
        h = jax.nn.relu(jnp.einsum("bd,bkdh->bkh", x, params["w1"][chosen]))
        y = jnp.einsum("bkh,bkhd,bk->bd", h, params["w2"][chosen], top)
        return cross_entropy((x + y) @ params["out"], batch["label"])

    return Case(loss_fn, filled(params), _classes())


def hypernetwork() -> Case:
    """Kernels computed from each example, and a kernel computed from parameters."""
    params = _shaped(make=(4, 12), code=(2,), expand=(2, 9), out=(3, 3))

    def loss_fn(params, batch):
        x = batch["x"]
        own = (x @ params["make"]).reshape(-1, 4, 3) / 2
        h = jnp.tanh(jnp.einsum("bd,bdh->bh", x, own))
        shared = jnp.tanh(params["code"] @ params["expand"]).reshape(3, 3)
        return cross_entropy(jnp.tanh(h @ shared) @ params["out"], batch["label"])

    return Case(loss_fn, filled(params), _classes())


def branches() -> Case:
    """A kernel inside `lax.switch`, chosen by the key."""
    params = _shaped(w1=(4, 5), a=(5, 5), b=(5, 5), out=(5, 3))

    def loss_fn(params, batch, key):
        h = jnp.tanh(batch["x"] @ params["w1"])
        layers = [
            lambda h: h @ params["a"] + h @ params["b"],
            lambda h: h @ params["a"] - h @ params["b"],
        ]
        h = jax.lax.switch(jax.random.bernoulli(key).astype(int), layers, h)
        return cross_entropy(jnp.tanh(h) @ params["out"], batch["label"])

    return Case(loss_fn, filled(params), _classes(3), jax.random.key(5))


def lora_frozen() -> Case:
    """Low-rank factors beside a frozen kernel, once applied and once merged with it."""
    params = {
        "kernels": [_shaped(w=(4, 6))["w"], _shaped(w=(6, 3))["w"]],
        "factors": [_shaped(a=(4, 2), b=(2, 6)), _shaped(a=(6, 2), b=(2, 3))],
    }

    def loss_fn(params, batch):
        w1, w2 = jax.lax.stop_gradient(params["kernels"])
        first, second = params["factors"]
        h = jnp.tanh(batch["x"] @ w1 + batch["x"] @ first["a"] @ first["b"])
        return cross_entropy(h @ (w2 + second["a"] @ second["b"]), batch["label"])

    return Case(loss_fn, filled(params), _classes())


def graph_convolution() -> Case:
    """A loss for each node of one graph; its adjacency couples them all."""
    size = 5
    links = jnp.eye(size) + jnp.eye(size, k=1) + jnp.eye(size, k=-1)
    batch = {
        "x": normal(1, size, 3),
        "adjacency": jnp.asarray(links / links.sum(1, keepdims=True)),
        "label": labels(2, 3, size),
    }

    def loss_fn(params, batch):
        h = batch["adjacency"] @ (batch["x"] @ params["w1"]) + params["b1"]
        h = batch["adjacency"] @ (jax.nn.relu(h) @ params["w2"]) + params["b2"]
        return cross_entropy(h, batch["label"])

    shapes = {"w1": (3, 4), "b1": (4,), "w2": (4, 3), "b2": (3,)}
    shapes = {n: jax.ShapeDtypeStruct(s, jnp.float64) for n, s in shapes.items()}
    return Case(loss_fn, filled(shapes), batch)


def _compose(first, second):
    (a, x), (b, y) = first, second
    return b * a, b * x + y


def mamba() -> Case:
    """Mamba: step, input and output matrices from the data; a depthwise convolution."""
    size, steps, width, states = 3, 4, 5, 2
    batch = {"x": labels(1, 7, size, steps), "label": labels(2, 7, size, steps)}
    params = _shaped(
        table=(7, width),
        split=(width, 2 * width),
        conv=(3, 1, width),
        conv_bias=(width,),
        to_step=(width, width),
        step_bias=(width,),
        to_b=(width, states),
        to_c=(width, states),
        log_a=(width, states),
        skip_gain=(width,),
        out=(width, width),
    )

    def loss_fn(params, batch):
        h = params["table"][batch["x"]]
        u, z = jnp.split(h @ params["split"], 2, axis=-1)
        u = jax.lax.conv_general_dilated(
            u,
            params["conv"],
            (1,),
            [(2, 0)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=width,
        )
        u = jax.nn.silu(u + params["conv_bias"])
        step = jax.nn.softplus(u @ params["to_step"] + params["step_bias"])[..., None]
        decay = jnp.exp(-step * jnp.exp(params["log_a"]))
        drive = step * (u @ params["to_b"])[:, :, None] * u[..., None]
        _, x = jax.lax.associative_scan(_compose, (decay, drive), axis=1)
        y = jnp.einsum("btds,bts->btd", x, u @ params["to_c"]) + params["skip_gain"] * u
        h = h + (y * jax.nn.silu(z)) @ params["out"]
        return cross_entropy(h @ params["table"].T, batch["label"]).mean(-1)

    return Case(loss_fn, filled(params), batch)
