"""What causality and locality are worth: one recurrent net and one graph net.

    python scripts/credit.py [--samples=16] [--repeats=200]

Node perturbation, float32, sigma 0.01, of untrained nets: a tanh RNN of 32 units over 32
steps with a loss at each (16 sequences), and two layers of message passing of 32 channels
on a 10 x 10 grid with a loss at each graph node. cosine with the autodiff gradient: mean
and standard deviation of single estimates; slope on it: mean and standard error;
variance: total, over that of the credit with all losses.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax
from jax.flatten_util import ravel_pytree

import bpfree

SAMPLES = flags.DEFINE_integer("samples", 16, "perturbation samples per estimate")
REPEATS = flags.DEFINE_integer("repeats", 200, "independent estimates")
WIDTH, STEPS, SIZE, SIDE = 32, 32, 16, 10


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def recurrent(params, batch):
    def step(h, now):
        x, t = now
        h = jnp.tanh(bpfree.node(x @ params["in"] + h @ params["rec"], "h"))
        y = bpfree.node(h @ params["out"], "y")
        return h, ((y - t) ** 2).mean(1)

    inputs = (batch["x"].swapaxes(0, 1), batch["t"].swapaxes(0, 1))
    return lax.scan(step, jnp.zeros((SIZE, WIDTH)), inputs)[1].T


def grid():
    index = np.arange(SIDE**2).reshape(SIDE, SIDE)
    edges = np.zeros((SIDE**2, SIDE**2))
    for a, b in ((index[1:], index[:-1]), (index[:, 1:], index[:, :-1])):
        edges[a.ravel(), b.ravel()] = edges[b.ravel(), a.ravel()] = 1
    return edges


def graph(params, batch):
    h = jnp.tanh(bpfree.node(batch["reads"] @ batch["x"] @ params["in"], "h"))
    y = bpfree.node(batch["reads"] @ h @ params["out"], "y")
    return ((y - batch["t"]) ** 2).mean(1)


def tasks():
    """name -> (losses, the same as `credit=None` takes them, params, batch, credit)."""
    params = {
        "in": normal(0, 8, WIDTH) / 8**0.5,
        "rec": normal(1, WIDTH, WIDTH) / WIDTH**0.5,
        "out": normal(2, WIDTH, 8) / WIDTH**0.5,
    }
    sequences = {"x": normal(3, SIZE, STEPS, 8), "t": normal(4, SIZE, STEPS, 8)}
    edges = grid()
    reads = edges + np.eye(len(edges))
    nodes = {"x": normal(5, len(edges), 8), "t": normal(6, len(edges), 8)}
    nodes["reads"] = jnp.asarray(reads / reads.sum(1, keepdims=True), jnp.float32)
    near = {name: bpfree.within_hops(edges, h) for name, h in (("h", 1), ("y", 0))}
    layers = {"in": params["in"], "out": params["out"]}
    whole = lambda params, batch: graph(params, batch).mean()  # noqa: E731
    summed = lambda params, batch: recurrent(params, batch).mean(1)  # noqa: E731
    return {
        "rnn": (recurrent, summed, params, sequences, bpfree.causal()),
        "graph": (graph, whole, layers, nodes, near),
    }


def estimates(loss_fn, params, batch, credit):
    tx = bpfree.node_perturbation(loss_fn, num_samples=SAMPLES.value, credit=credit)

    def one(key):
        state = tx.init(params)._replace(key=jax.random.key_data(key))
        return ravel_pytree(tx.update(None, state, params, batch=batch)[0])[0]

    keys = jax.random.split(jax.random.key(7), REPEATS.value)
    return jax.jit(lambda keys: lax.map(one, keys))(keys)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, K {SAMPLES.value}")
    print(f"{'task':<8}{'credit':<8}{'cosine':>16}{'slope':>18}{'variance':>10}")
    for name, (losses, plain, params, batch, rule) in tasks().items():
        truth = ravel_pytree(jax.grad(lambda p: plain(p, batch).mean())(params))[0]  # noqa: B023
        wide = None
        for label, loss_fn, credit in (("all", plain, None), ("rule", losses, rule)):
            found = estimates(loss_fn, params, batch, credit)
            slope = found @ truth / (truth @ truth)
            cosine = slope * jnp.linalg.norm(truth) / jnp.linalg.norm(found, axis=1)
            variance = found.var(0).sum()
            wide = variance if wide is None else wide
            print(
                f"{name:<8}{label:<8}{cosine.mean():>8.3f} +- {cosine.std():.3f}"
                f"{slope.mean():>10.3f} +- {slope.std() / REPEATS.value**0.5:.3f}"
                f"{variance / wide:>10.3f}"
            )


if __name__ == "__main__":
    app.run(main)
