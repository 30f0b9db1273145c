"""A layered network with its parameters and a batch: dynamics, and weight gradient."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree.equilibrium import linear
from bpfree.equilibrium.energy import Dynamics, Phases, States
from bpfree.equilibrium.pooling import Pool
from bpfree.equilibrium.states import total

Fn = Callable[..., jax.Array]
Feedback = float | jax.Array


class Edge(NamedTuple):
    """A term of the energy, from state `source` to state `target`; 0 is the input."""

    name: str
    source: int
    target: int
    module: nn.Module
    pool: Pool | None

    def pooled(self, z: jax.Array) -> jax.Array:
        return z if self.pool is None else self.pool.fn(z)


class Net(NamedTuple):
    """What `layered` was given."""

    edges: tuple[Edge, ...]
    depth: int
    activation: Fn
    output_activation: Fn
    readout: nn.Module | None
    feedback: Feedback
    cost: Fn
    image: tuple[int, ...]
    x: str
    label: str

    def activation_of(self, i: int) -> Fn:
        """Of the state at position i, from 0."""
        return self.output_activation if i == self.depth - 1 else self.activation

    def shaped(self, x: jax.Array) -> jax.Array:
        """Inputs (B, ...) as images, if the net says their shape."""
        return x.reshape(x.shape[0], *self.image) if self.image else x

    def scale(self, layers: int, like: jax.Array) -> jax.Array:
        """f^layers, in the dtype of `like`."""
        return jnp.asarray(self.feedback**layers, like.dtype)


class Bound(NamedTuple):
    """A net with parameters and batch: linear maps of all edges, by name."""

    net: Net
    maps: dict[str, linear.Linear]
    readout: linear.Linear
    states: States  # zeros
    x: jax.Array
    label: jax.Array

    def output(self, edge: Edge, h: jax.Array) -> jax.Array:
        """P(W * h + b) of an edge, the argument of Phi that its target meets."""
        return edge.pooled(self.maps[edge.name].forward(h))

    def cost(self, outputs: jax.Array) -> jax.Array:
        return self.net.cost(outputs, self.label)


def bind(net: Net, params, batch) -> Bound:
    """The net with the linear maps of its parameters, and zeros of its states' shapes."""
    x = net.shaped(batch[net.x])
    x = x.astype(params[net.edges[0].name]["kernel"].dtype)
    maps: dict[str, linear.Linear] = {}
    zeros: dict[int, Any] = {0: x}
    for edge in net.edges:
        source = zeros[edge.source]
        made = linear.bind(edge.module, params[edge.name], source.shape[1:])
        state = jax.eval_shape(lambda h, e=edge, m=made: e.pooled(m.forward(h)), source)
        zeros.setdefault(edge.target, jnp.zeros(state.shape, state.dtype))
        maps[edge.name] = made
    states = tuple(zeros[i] for i in range(1, net.depth + 1))
    readout = readout_of(net, params, states[-1])
    return Bound(net, maps, readout, states, x, batch[net.label])


def readout_of(net: Net, params, last: jax.Array) -> linear.Linear:
    """From the last state to the outputs: a layer, or the state itself in rows."""
    if net.readout is not None:
        return linear.bind(net.readout, params["readout"], last.shape[1:])
    size = math.prod(last.shape[1:])
    return linear.Linear(
        lambda h: h.reshape(h.shape[0], size), lambda v: v.reshape(last.shape)
    )


def dynamics(bound: Bound) -> Dynamics:
    """What a sweep evaluates. A product W h is kept until h changes."""
    net, maps = bound.net, bound.maps
    inner = [e for e in net.edges if e.source > 0]
    constant: dict[int, jax.Array] = {}  # the drive of the input, the same in all sweeps
    for e in net.edges:
        if e.source == 0:
            constant[e.target] = constant.get(e.target, 0.0) + bound.output(e, bound.x)

    def products(h: States, group=range(net.depth)) -> dict[str, jax.Array]:
        moved = (e for e in inner if e.source - 1 in group)
        return {e.name: maps[e.name].forward(h[e.source - 1]) for e in moved}

    def drive(i, h, z, beta):
        terms = [constant[i + 1].astype(h[i].dtype)] if i + 1 in constant else []
        for e in inner:
            if e.target == i + 1:
                terms.append(e.pooled(z[e.name]))
            if e.source == i + 1:
                v = h[e.target - 1]
                v = v if e.pool is None else e.pool.pull(z[e.name], v)
                back = maps[e.name].transposed(v)
                terms.append(net.scale(e.target - e.source, back) * back)
        if beta is not None and i == net.depth - 1:
            losses, vjp = jax.vjp(bound.cost, bound.readout.forward(h[i]))
            signal = bound.readout.transposed(vjp(jnp.ones_like(losses))[0])
            terms.append(-beta.astype(signal.dtype) * signal)
        return total(terms)

    return Dynamics(
        bound.states,
        products,
        lambda h, z, group: {**z, **products(h, group)},
        drive,
        lambda i, z: net.activation_of(i)(z),
    )


def weighted(bound: Bound, phases: Sequence[Phases]) -> jax.Array:
    """Re sum_k w_k sum_b [Phi - beta_k C] of fixed states; its derivative is the update.

    An edge from the input is linear in the states, so theirs are summed over the phases
    first: one product per layer.
    """
    net, terms = bound.net, []
    for e in net.edges:
        scale = net.scale(e.target - net.depth, bound.x)
        targets = [p.states[e.target - 1] for p in phases]
        targets = [_as(p.weights, h) * h for p, h in zip(phases, targets, strict=True)]
        if e.source == 0:
            signal = scale * sum(h.sum(0).real for h in targets)
            terms.append((bound.output(e, bound.x) * signal).sum())
            continue
        for p, target in zip(phases, targets, strict=True):
            z = jax.vmap(partial(bound.output, e))(p.states[e.source - 1])
            terms.append(scale * (z * target).real.sum())
    for p in phases:
        losses = jax.vmap(lambda h: bound.cost(bound.readout.forward(h)))(p.states[-1])
        terms.append(
            -(_as(p.weights, losses) * _as(p.points, losses) * losses).real.sum()
        )
    return total(terms)


def _as(weights: jax.Array, state: jax.Array) -> jax.Array:
    """Weights (K,) that broadcast against states (K, B, ...)."""
    return weights.reshape(-1, *(1,) * (state.ndim - 1)).astype(state.dtype)


def parts(bound: Bound) -> dict[str, tuple[Fn, Any]]:
    """{name: (function, example)} of what must be holomorphic."""
    net, found = bound.net, {}
    for i, state in enumerate(bound.states):
        fn = net.activation_of(i)
        found[f"activation {fn.__name__!r}"] = (fn, state)
    for e in net.edges:
        if e.source > 0 and e.pool is not None:
            z = bound.maps[e.name].forward(bound.states[e.source - 1])
            found[f"pooling {e.pool.name!r} of {e.name}"] = (e.pool.fn, z)
    outputs = bound.readout.forward(bound.states[-1])
    found[f"cost {net.cost.__name__!r}"] = (bound.cost, outputs)
    return found
