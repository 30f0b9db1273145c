"""Plain JAX: state-space models and spikes."""

import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, labels, normal, weight


def _linear_recurrence(decay, drive, axis):
    """h_t = decay_t h_{t-1} + drive_t, all steps at once."""

    def compose(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(compose, (decay, drive), axis=axis)[1]


def diagonal_ssm() -> Case:
    """A real diagonal state; time scanned in parallel on axis 1, T = B."""

    def loss_fn(params, batch):
        h = batch["x"] @ params["embed"]
        for layer in params["layers"]:
            drive = h @ layer["b"]
            decay = jnp.broadcast_to(jax.nn.sigmoid(layer["a"]), drive.shape)
            state = _linear_recurrence(decay, drive, axis=1)
            h = h + jax.nn.gelu(state @ layer["c"] + layer["d"] * h)
        return cross_entropy(h @ params["head"], batch["y"]).mean(-1)

    def layer(i):
        b, c = weight(i, 4, 4, 6), weight(i + 1, 6, 6, 4)
        return {"a": 1 + normal(i + 2, 6), "b": b, "c": c, "d": normal(i + 3, 4)}

    layers = [layer(0), layer(10)]
    params = {"embed": weight(20, 3, 3, 4), "layers": layers, "head": weight(21, 4, 4, 5)}
    return Case(loss_fn, params, {"x": normal(22, 4, 4, 3), "y": labels(23, 5, 4, 4)})


def selective_ssm() -> Case:
    """Step sizes, inputs and outputs of the state depend on the data (Mamba's way)."""

    def loss_fn(params, batch):
        x = batch["x"]
        step = jax.nn.softplus(x @ params["step"] + params["step_bias"])  # (B, T, d)
        write, read = x @ params["write"], x @ params["read"]  # (B, T, n)
        decay = jnp.exp(-step[..., None] * jnp.exp(params["log_a"]))
        drive = (step * x)[..., None] * write[:, :, None, :]
        state = _linear_recurrence(decay, drive, axis=1)
        y = jnp.einsum("btdn,btn->btd", state, read) + params["skip"] * x
        gated = y * jax.nn.silu(x @ params["gate"])
        return ((gated.mean(1) @ params["head"] - batch["t"]) ** 2).sum(-1)

    params = {
        "step": weight(0, 4, 4, 4),
        "step_bias": normal(1, 4),
        "write": weight(2, 4, 4, 3),
        "read": weight(3, 4, 4, 3),
        "log_a": normal(4, 4, 3) / 2,
        "skip": normal(5, 4),
        "gate": weight(6, 4, 4, 4),
        "head": weight(7, 4, 4, 2),
    }
    return Case(loss_fn, params, {"x": normal(8, 3, 5, 4), "t": normal(9, 3, 2)})


def complex_ssm() -> Case:
    """S5's way: complex products and states of one sequence, under vmap; T = B."""

    def layer_fn(layer, u):  # (T, d) -> (T, d)
        pole = jax.lax.complex(-jnp.exp(layer["log_rate"]), layer["frequency"])
        step = jnp.exp(layer["log_step"])
        decay = jnp.exp(pole * step)
        write = jax.lax.complex(layer["b"][..., 0], layer["b"][..., 1])
        read = jax.lax.complex(layer["c"][..., 0], layer["c"][..., 1])
        drive = jax.vmap(lambda x: write @ x)(u.astype(write.dtype))
        drive = drive * ((decay - 1) / pole)
        state = _linear_recurrence(jnp.broadcast_to(decay, drive.shape), drive, axis=0)
        y = jax.vmap(lambda s: 2 * (read @ s).real)(state)
        return u + jax.nn.gelu(y + layer["d"] * u)

    def one(params, x):
        h = jax.vmap(lambda v: params["embed"] @ v)(x)
        for layer in params["layers"]:
            h = layer_fn(layer, h)
        return h.mean(0) @ params["head"]

    def loss_fn(params, batch):
        return cross_entropy(jax.vmap(one, (None, 0))(params, batch["x"]), batch["label"])

    def layer(i):
        return {
            "log_rate": normal(i, 3) / 2,
            "frequency": normal(i + 1, 3),
            "log_step": normal(i + 2, 3) / 4 - 1,
            "b": weight(i + 3, 4, 3, 4, 2),
            "c": weight(i + 4, 3, 4, 3, 2),
            "d": normal(i + 5, 4),
        }

    layers = [layer(0), layer(10)]
    params = {"embed": weight(20, 3, 4, 3), "layers": layers, "head": weight(21, 4, 4, 3)}
    return Case(loss_fn, params, {"x": normal(22, 4, 4, 3), "label": labels(23, 3, 4)})


@jax.custom_vjp
def _spike(v):
    return (v > 0).astype(v.dtype)


_spike.defvjp(lambda v: (_spike(v), v), lambda v, g: (g / (1 + 4 * jnp.abs(v)) ** 2,))


def spiking() -> Case:
    """Leaky integrate-and-fire units with a surrogate derivative; T = B.

    Behind a threshold finite differences see steps where `jax.grad` sees the surrogate:
    the exact check holds, the slope of sampled estimates is not 1 and need not be.
    """

    def loss_fn(params, batch):
        def step(state, x):
            v, out = state
            v = 0.8 * v + x @ params["w1"] + params["b1"]
            z = _spike(v - 1)
            out = 0.9 * out + z @ params["w2"]
            return (v - z, out), out

        size, steps, _ = batch["x"].shape
        zeros = jnp.zeros((size, 6)), jnp.zeros((size, 3))
        _, readout = jax.lax.scan(step, zeros, batch["x"].swapaxes(0, 1))
        return cross_entropy(readout.mean(0), batch["label"])

    params = {"w1": 2 * weight(0, 4, 4, 6), "b1": normal(1, 6), "w2": weight(2, 6, 6, 3)}
    return Case(loss_fn, params, {"x": normal(3, 4, 4, 4), "label": labels(4, 3, 4)})
