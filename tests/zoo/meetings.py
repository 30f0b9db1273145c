"""Plain JAX: branches, rules of their own, sums for products, nets without a batch."""

import jax
import jax.numpy as jnp

from tests.zoo.case import Case, cross_entropy, filled, labels, normal


def _shaped(**shapes):
    made = {n: jax.ShapeDtypeStruct(s, jnp.float64) for n, s in shapes.items()}
    return filled(made)


def _classes(size=4):
    return {"x": normal(1, size, 5), "label": labels(2, 3, size)}


def _between(middle, **more) -> Case:
    """Two layers with `middle(h, params, batch)` between them."""

    def loss_fn(params, batch):
        h = middle(jnp.tanh(batch["x"] @ params["w1"]), params, batch)
        return cross_entropy(h @ params["w2"], batch["label"])

    return Case(loss_fn, _shaped(w1=(5, 6), w2=(6, 3), **more), _classes())


def branch() -> Case:
    """Normalised over the batch in one branch of `cond` only."""

    def normalised(h):
        return (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3)

    def middle(h, params, batch):
        return jax.lax.cond(batch["train"], normalised, lambda h: h, h)

    case = _between(middle)
    return case._replace(batch=case.batch | {"train": jnp.asarray(True)})


def reversed_branch() -> Case:
    """The last branch adds the batch in reverse; the first keeps its order."""

    def middle(h, params, batch):
        branches = [lambda h: h, lambda h: h + h[::-1]]
        return jax.lax.switch(batch["choice"], branches, h)

    case = _between(middle)
    return case._replace(batch=case.batch | {"choice": jnp.asarray(1)})


def custom_rule() -> Case:
    """Centred over the batch by a function with a derivative of its own."""

    @jax.custom_vjp
    def centred(h):
        return h - h.mean(0)

    centred.defvjp(lambda h: (centred(h), None), lambda _, g: (g - g.mean(0),))
    return _between(lambda h, params, batch: centred(h))


def counted() -> Case:
    """Each unit is divided by how many examples it is active for, a whole number."""
    return _between(lambda h, params, batch: jax.nn.relu(h) / (1 + (h > 0).sum(0)))


def scaled_statistic() -> Case:
    """A parameter scales what is averaged over the batch, then multiplied by a weight."""

    def middle(h, params, batch):
        context = (jnp.tanh(h) * params["scale"]).mean(0)
        return h * jax.nn.sigmoid(context @ params["gate"])

    return _between(middle, scale=(6,), gate=(6, 6))


def phases() -> Case:
    """Complex numbers are averaged over the batch."""

    def middle(h, params, batch):
        order = jnp.exp(1j * h).mean(0)
        return jnp.cos(h - jnp.angle(order)) + jnp.abs(order)

    return _between(middle)


def named_mean() -> Case:
    """A learned mean next to a kernel whose batch is centred."""

    def loss_fn(params, batch):
        layer = params["layer"]
        h = (batch["x"] - layer["mean"]) * layer["mean"] @ layer["w"]
        return cross_entropy(jnp.tanh(h - h.mean(0)) @ params["head"], batch["label"])

    layer = _shaped(mean=(5,), w=(5, 6))
    return Case(
        loss_fn, {"layer": layer, "head": _shaped(head=(6, 3))["head"]}, _classes()
    )


def sums() -> Case:
    """Products written with `*` and `sum`."""

    def dense(x, w):
        return (x[:, :, None] * w[None]).sum(1)

    def loss_fn(params, batch):
        h = jnp.tanh(dense(batch["x"], params["w1"]) + params["b1"])
        h = jnp.tanh(dense(h, params["w2"]))
        return ((h * params["w3"]).sum(-1) - batch["label"]) ** 2

    return Case(loss_fn, _shaped(w1=(5, 6), b1=(6,), w2=(6, 4), w3=(4,)), _classes())


def generator() -> Case:
    """Against a critic: what is made of the key alone, one for each example."""

    def loss_fn(params, batch, key):
        latent = jax.random.normal(key, (4, 3), jnp.float64)
        made = (
            jax.nn.silu(jax.nn.silu(latent @ params["g1"]) @ params["g2"]) @ params["g3"]
        )

        def critic(x):
            return (jax.nn.silu(x @ params["d1"] + params["b"]) @ params["d2"])[:, 0]

        return jax.nn.softplus(-critic(batch["x"])) + jax.nn.softplus(critic(made))

    params = _shaped(g1=(3, 6), g2=(6, 6), g3=(6, 5), d1=(5, 6), b=(6,), d2=(6, 1))
    return Case(loss_fn, params, {"x": normal(1, 4, 5)}, jax.random.key(3))


def _ruled(fn, rule):
    """`fn` with the derivative of `rule`."""
    ruled = jax.custom_vjp(fn)
    ruled.defvjp(
        lambda *args: (fn(*args), args), lambda args, g: jax.vjp(rule, *args)[1](g)
    )
    return ruled


def whole_numbers() -> Case:
    """A product of eight-bit numbers, with the derivative of the product of real ones."""

    def in_eighths(x, w):
        x, w = (jnp.round(8 * a).astype(jnp.int8) for a in (x, w))
        numbers = (((1,), (0,)), ((), ()))
        y = jax.lax.dot_general(x, w, numbers, preferred_element_type=jnp.int32)
        return y.astype(jnp.float64) / 64

    dense = _ruled(in_eighths, jnp.matmul)

    def loss_fn(params, batch):
        h = jnp.tanh(dense(batch["x"], params["w1"]))
        return cross_entropy(dense(h, params["w2"]), batch["label"])

    return Case(loss_fn, _shaped(w1=(5, 6), w2=(6, 3)), _classes())


def fused() -> Case:
    """Two layers in one function with a derivative of its own: no node fits between."""

    def two_layers(x, w, v):
        return jnp.tanh(x @ w) @ v

    both = _ruled(two_layers, two_layers)

    def loss_fn(params, batch):
        h = jnp.tanh(both(batch["x"], params["w1"], params["v1"]))
        return cross_entropy(h @ params["w2"], batch["label"])

    return Case(loss_fn, _shaped(w1=(5, 6), v1=(6, 6), w2=(6, 3)), _classes())


def equilibrium() -> Case:
    """A fixed point, with the derivative of the implicit function theorem."""

    def settle(step, start):
        return jax.lax.fori_loop(0, 25, lambda i, z: step(z), start)

    def towards(w, x, z):
        return jnp.tanh(0.3 * z @ w + x)

    @jax.custom_vjp
    def fixed_point(w, x):
        return settle(lambda z: towards(w, x, z), jnp.zeros_like(x))

    def forward(w, x):
        z = fixed_point(w, x)
        return z, (w, x, z)

    def backward(kept, g):
        pull = jax.vjp(towards, *kept)[1]
        return pull(settle(lambda a: g + pull(a)[2], g))[:2]

    fixed_point.defvjp(forward, backward)

    def loss_fn(params, batch):
        h = fixed_point(params["w"], batch["x"] @ params["w1"])
        return cross_entropy(h @ params["w2"], batch["label"])

    return Case(loss_fn, _shaped(w1=(5, 6), w=(6, 6), w2=(6, 3)), _classes())


def stopped_branch() -> Case:
    """Rounded straight through in one branch, with a stopped factor in the other."""

    def middle(h, params, batch):
        still = jax.lax.stop_gradient

        def step(h, i):
            rounded = lambda h: h + still(jnp.round(4 * h) / 4 - h)  # noqa: E731
            h = jax.lax.cond(i == 1, rounded, lambda h: jnp.tanh(h) * still(h), h)
            return jnp.tanh(h @ params["w"]), None

        return jax.lax.scan(step, h, jnp.arange(3))[0]

    return _between(middle, w=(6, 6))
