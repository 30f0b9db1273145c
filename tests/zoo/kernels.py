"""Plain JAX: what may stand between a parameter and its product."""

import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, labels, normal, weight


def weight_norm() -> Case:
    """Directions and lengths of the columns are separate parameters."""

    def dense(layer, x):
        direction = layer["v"] / jnp.linalg.norm(layer["v"], axis=0)
        return x @ (layer["g"] * direction) + layer["b"]

    def loss_fn(params, batch):
        h = jnp.tanh(dense(params["hidden"], batch["x"]))
        return cross_entropy(dense(params["head"], h), batch["label"])

    def layer(i, fan_in, out):
        return {
            "v": normal(i, fan_in, out),
            "g": 1 + normal(i + 1, out) / 4,
            "b": normal(i, out),
        }

    params = {"hidden": layer(0, 4, 6), "head": layer(2, 6, 3)}
    return Case(loss_fn, params, {"x": normal(5, 4, 4), "label": labels(6, 3, 4)})


def quantised() -> Case:
    """Kernels rounded to eighths, straight through by `stop_gradient`."""

    def rounded(w):
        return w + jax.lax.stop_gradient(jnp.round(w * 8) / 8 - w)

    return _three_layers(rounded)


def quantised_custom() -> Case:
    """The same by `custom_vjp`."""

    @jax.custom_vjp
    def rounded(w):
        return jnp.round(w * 8) / 8

    rounded.defvjp(lambda w: (rounded(w), None), lambda _, g: (g,))
    return _three_layers(rounded)


def masked() -> Case:
    """Pruned kernels: a mask, a cast and transposes in front of the product."""

    def prepared(w):
        mask = jnp.arange(w.size).reshape(w.shape) % 3 > 0
        return jnp.where(mask, w, 0).astype(jnp.float64).T.copy().T

    return _three_layers(prepared)


def _three_layers(prepared) -> Case:
    def loss_fn(params, batch):
        h = batch["x"]
        for name in ("first", "second"):
            h = jax.nn.silu(h @ prepared(params[name]) + params[name + "_bias"])
        return cross_entropy(h @ prepared(params["head"]), batch["label"])

    params = {
        "first": weight(0, 4, 4, 6),
        "first_bias": normal(1, 6),
        "second": weight(2, 6, 6, 6),
        "second_bias": normal(3, 6),
        "head": weight(4, 6, 6, 3),
    }
    return Case(loss_fn, params, {"x": normal(5, 4, 4), "label": labels(6, 3, 4)})


def lora() -> Case:
    """Two thin factors beside a frozen kernel, which is a constant of the program."""
    base = [weight(10, 6, 6, 6), weight(11, 6, 6, 6)]

    def loss_fn(params, batch):
        h = batch["x"]
        for frozen, thin in zip(base, params, strict=True):
            h = jnp.tanh(h @ frozen + 0.5 * (h @ thin["a"]) @ thin["b"])
        return ((h - batch["t"]) ** 2).sum(-1)

    return Case(loss_fn, _thin(), {"x": normal(5, 3, 6), "t": normal(6, 3, 6)})


def lora_merged() -> Case:
    """The same with the factors multiplied into the kernel first."""
    base = [weight(10, 6, 6, 6), weight(11, 6, 6, 6)]

    def loss_fn(params, batch):
        h = batch["x"]
        for frozen, thin in zip(base, params, strict=True):
            h = jnp.tanh(h @ (frozen + 0.5 * thin["a"] @ thin["b"]))
        return ((h - batch["t"]) ** 2).sum(-1)

    return Case(loss_fn, _thin(), {"x": normal(5, 3, 6), "t": normal(6, 3, 6)})


def _thin():
    return [{"a": weight(i, 6, 6, 2), "b": weight(i + 1, 2, 2, 6)} for i in (0, 2)]


def tied() -> Case:
    """An autoencoder whose decoder is the encoder's transpose, as wide as the batch."""

    def loss_fn(params, batch):
        code = jnp.tanh(batch["x"] @ params["w"] + params["b"])
        back = code @ params["w"].T + params["c"]
        return ((back - batch["x"]) ** 2).sum(-1)

    params = {"w": weight(0, 4, 4, 4), "b": normal(1, 4), "c": normal(2, 4)}
    return Case(loss_fn, params, {"x": normal(3, 4, 4)})


def bilinear() -> Case:
    """A parameter between two values of the batch, and one that only scales."""

    def loss_fn(params, batch):
        h = jnp.einsum("bi,ijk,bj->bk", batch["x"], params["w"], batch["z"])
        h = params["gain"] * jnp.tanh(h) + params["shift"]
        return ((jnp.einsum("bk,kl->bl", h, params["head"]) - batch["t"]) ** 2).sum(-1)

    params = {
        "w": weight(0, 9, 3, 3, 4),
        "gain": normal(1, 4),
        "shift": normal(2, 4),
        "head": weight(3, 4, 4, 2),
    }
    batch = {"x": normal(4, 3, 3), "z": normal(5, 3, 3), "t": normal(6, 3, 2)}
    return Case(loss_fn, params, batch)


def experts() -> Case:
    """Top-2 of four experts for each token; all experts run, gates are zero for most."""

    def loss_fn(params, batch):
        x = batch["x"]
        gates = _gates(x @ params["router"])
        h = jax.nn.gelu(jnp.einsum("btd,edf->btef", x, params["up"]))
        y = jnp.einsum("btef,efd->bted", h, params["down"])
        y = x + jnp.einsum("bted,bte->btd", y, gates)
        return cross_entropy(y @ params["head"], batch["y"]).mean(-1)

    return _experts(loss_fn)


def experts_dispatched() -> Case:
    """The same with tokens moved to slots of their experts: no axis counts examples."""

    def loss_fn(params, batch):
        size, steps, width = batch["x"].shape
        x = batch["x"].reshape(-1, width)
        gates = _gates(x @ params["router"])
        chosen = gates > 0
        place = jnp.cumsum(chosen, 0) * chosen - 1  # -1 has no slot
        slots = jax.nn.one_hot(place, size * steps, dtype=x.dtype)
        inside = jnp.einsum("nes,nd->esd", slots, x)
        h = jax.nn.gelu(jnp.einsum("esd,edf->esf", inside, params["up"]))
        outside = jnp.einsum("esf,efd->esd", h, params["down"])
        y = x + jnp.einsum("nes,esd,ne->nd", slots, outside, gates)
        logits = (y @ params["head"]).reshape(size, steps, -1)
        return cross_entropy(logits, batch["y"]).mean(-1)

    return _experts(loss_fn)


def _gates(logits):
    best, index = jax.lax.top_k(logits, 2)
    shares = jax.nn.softmax(best)
    return (jax.nn.one_hot(index, logits.shape[-1]) * shares[..., None]).sum(-2)


def _experts(loss_fn) -> Case:
    params = {
        "router": weight(0, 4, 4, 4),
        "up": weight(1, 4, 4, 4, 6),
        "down": weight(2, 6, 4, 6, 4),
        "head": weight(3, 4, 4, 5),
    }
    return Case(loss_fn, params, {"x": normal(4, 4, 4, 4), "y": labels(5, 5, 4, 4)})
