r"""Layered Hopfield networks made of Flax layers.

    Phi = sum_e f^(target(e) - L) < P_e(W_e * h_source(e) + b_e), h_target(e) >

over the edges e of a graph: the layers of the chain h_0 = x -> h_1 -> ... -> h_L, and any
skip connections (each a further symmetric term of the energy). P is a pooling or nothing.
The cost reads h_L, or a readout W h_L + b that is no state.

f is the feedback. With f^(l - L) G(h_l) in place of G(h_l) as well, the energy

    F = sum_l f^(l - L) G(h_l) - Phi + beta C

is stationary where h_l = sigma(W_l h_(l-1) + b_l + f W_(l+1)^T h_(l+1)), and h_L takes
-beta dC/dh_L as ever: what comes from below is not scaled, what comes from d layers above
is, by f^d. It is an energy, so the theorem of equilibrium propagation holds as it stands:
the response of state l to beta is f^(L - l) times smaller, and the factor f^(l - L) of
its terms in dF/dtheta undoes just that. The other way to scale feedback, an asymmetric
vector field whose layers learn from their own differences, has no such factors: its step
for layer l is f^(L - l) times too short, and there is no theorem that it descends a cost.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree.equilibrium import linear
from bpfree.equilibrium.activations import ACTIVATIONS
from bpfree.equilibrium.costs import COSTS
from bpfree.equilibrium.energy import Dynamics, Energy, Phases, States
from bpfree.equilibrium.pooling import Pool

Layer = nn.Module | tuple[nn.Module, Pool]
Fn = Callable[..., jax.Array]
Feedback = float | jax.Array
Activation = Literal[
    "shifted_sigmoid", "dsilu", "hard_sigmoid", "relu", "tanh", "identity"
]


class Edge(NamedTuple):
    """A term of the energy, from state `source` to state `target`; 0 is the input."""

    name: str
    source: int
    target: int
    module: nn.Module
    pool: Pool | None


class _Net(NamedTuple):
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

    def activate(self, i: int, z: jax.Array) -> jax.Array:
        last = i == self.depth - 1
        return self.output_activation(z) if last else self.activation(z)


class _Bound(NamedTuple):
    """A net with parameters and batch: linear maps of all edges, by name."""

    net: _Net
    maps: dict[str, linear.Linear]
    states: States  # zeros
    x: jax.Array
    label: jax.Array


def layered(
    layers: Sequence[Layer],
    *,
    activation: Activation | Fn = "shifted_sigmoid",
    readout: nn.Module | None = None,
    feedback: Feedback = 1.0,
    cost: Literal["cross_entropy", "squared_error"] | Fn = "cross_entropy",
    skips: Sequence[tuple[int, int, Layer]] = (),
    output_activation: Activation | Fn | None = None,
    image: Sequence[int] = (),
    x: str = "x",
    label: str = "label",
) -> Energy:
    """The energy of a dense or convolutional Hopfield network.

    Args:
      layers: Dense and Conv modules of `flax.linen`, each with a state; `(module, pool)`
        pools its output (`bpfree.equilibrium.softmax_pool` and others).
      activation: of all states; a name in `ACTIVATIONS`, or a function.
      readout: Dense layer between the last state and the cost, no state itself. None:
        the last state is the output, its neurons nudged one by one.
      feedback: f, 0 < f <= 1, a number or a traced scalar. The Jacobi sweep has sqrt(f)
        times the spectral radius that it has without f at the same states, so a sweep
        one state after the other leaves about f times the error. As f goes to 0, the
        network becomes feed-forward and the gradient backprop's. The first state answers
        the nudging with f^(L - 1) times the last one's strength, which must stay above
        the rounding error of the states.
      cost: "cross_entropy", "squared_error", or `(outputs, labels) -> (B,)`.
      skips: `(source, target, layer)`, where 0 is the input and 1 the first state.
      output_activation: of the last state, if it differs.
      image: (height, width, channels) of inputs that come as rows of pixels.
      x, label: keys of the batch.

    Raises:
      ValueError: no layers, unknown names, skips that do not fit, a feedback outside of
        0 < f <= 1.
      TypeError (when used): modules other than Dense and Conv.

    Reference: Liu & Chen 2025, arXiv:2508.11659 (weak feedback).

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> relaxation = bpfree.equilibrium.Relaxation()
        >>> bpfree.equilibrium.predict(energy, params, batch, relaxation).shape
        (5, 2)
    """
    if not layers:
        raise ValueError("layered() needs at least one layer")
    chain = [(i, i + 1, layer) for i, layer in enumerate(layers)]
    edges = [_edge(f"layer_{j}", i, j, layer) for i, j, layer in chain]
    for i, j, layer in skips:
        if not 0 <= i < j <= len(layers):
            raise ValueError(
                f"a skip from {i} to {j}: source < target, between 0 (the input) and "
                f"{len(layers)} (the last state)"
            )
        edges.append(_edge(f"skip_{i}_{j}", i, j, layer))
    if isinstance(feedback, (int, float)) and not 0 < feedback <= 1:
        raise ValueError(f"feedback={feedback} must be a number in 0 < feedback <= 1")
    hidden = choose("activation", activation, ACTIVATIONS)
    last = activation if output_activation is None else output_activation
    net = _Net(
        tuple(edges),
        len(layers),
        hidden,
        choose("output_activation", last, ACTIVATIONS),
        readout,
        feedback,
        choose("cost", cost, COSTS),
        tuple(image),
        x,
        label,
    )
    return Energy(
        lambda key, x: _init(net, key, x),
        lambda params, batch: _dynamics(_bind(net, params, batch)),
        lambda params, h, batch: _outputs(net, params, h),
        lambda params, h, batch: net.cost(_outputs(net, params, h), batch[net.label]),
        lambda params, batch, *phases: _weighted(net, params, batch, phases),
        lambda params, batch: _parts(_bind(net, params, batch)),
    )


def choose(what: str, value: str | Fn, choices: dict[str, Fn]) -> Fn:
    """The function `value` names, or `value` itself."""
    if callable(value):
        return value
    if value not in choices:
        raise ValueError(f"{what}={value!r} is unknown; choose one of {tuple(choices)}")
    return choices[value]


def _edge(name, source, target, layer) -> Edge:
    module, pool = layer if isinstance(layer, tuple) else (layer, None)
    return Edge(name, source, target, module, pool)


def _init(net: _Net, key, x) -> dict[str, Any]:
    """The layers' own initialisers, on the shapes that their sources have."""
    params, states = {}, {0: _shaped(net, jnp.asarray(x))}
    keys = jax.random.split(key, len(net.edges) + 1)
    for edge, key in zip(net.edges, keys[1:], strict=True):
        params[edge.name], z = linear.init(edge.module, key, states[edge.source])
        state = z if edge.pool is None else edge.pool.fn(z)
        before = states.setdefault(edge.target, state)
        if state.shape != before.shape:
            raise ValueError(
                f"{edge.name} makes {state.shape[1:]}, but state {edge.target} has the "
                f"shape {before.shape[1:]}"
            )
    if net.readout is not None:
        params["readout"] = linear.init(net.readout, keys[0], states[net.depth])[0]
    return params


def _bind(net: _Net, params, batch) -> _Bound:
    x = _shaped(net, batch[net.x])
    x = x.astype(params[net.edges[0].name]["kernel"].dtype)
    maps: dict[str, linear.Linear] = {}
    zeros: dict[int, Any] = {0: x}
    for edge in net.edges:
        source = zeros[edge.source]
        maps[edge.name] = linear.bind(edge.module, params[edge.name], source.shape[1:])
        state = jax.eval_shape(partial(_output, edge, maps[edge.name]), source)
        zeros.setdefault(edge.target, jnp.zeros(state.shape, state.dtype))
    if net.readout is not None:
        shape = zeros[net.depth].shape[1:]
        maps["readout"] = linear.bind(net.readout, params["readout"], shape)
    states = tuple(zeros[i] for i in range(1, net.depth + 1))
    return _Bound(net, maps, states, x, batch[net.label])


def _shaped(net: _Net, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], *net.image) if net.image else x


def _pooled(edge: Edge, z: jax.Array) -> jax.Array:
    return z if edge.pool is None else edge.pool.fn(z)


def _output(edge: Edge, maps: linear.Linear, h: jax.Array) -> jax.Array:
    return _pooled(edge, maps.forward(h))


def _outputs(net: _Net, params, states: States) -> jax.Array:
    last = states[-1]
    if net.readout is None:
        return last.reshape(last.shape[0], -1)
    return linear.bind(net.readout, params["readout"], last.shape[1:]).forward(last)


# ----------------------------------------------------------------------------- dynamics


def _dynamics(bound: _Bound) -> Dynamics:
    net = bound.net
    inner = [e for e in net.edges if e.source > 0]
    constant: dict[int, jax.Array] = {}  # the drive of the input, the same in all sweeps
    for e in net.edges:
        if e.source == 0:
            term = _output(e, bound.maps[e.name], bound.x)
            constant[e.target] = constant.get(e.target, 0.0) + term

    def products(h: States) -> dict[str, jax.Array]:
        return {e.name: bound.maps[e.name].forward(h[e.source - 1]) for e in inner}

    def renew(h, z, group):
        moved = [e for e in inner if e.source - 1 in group]
        new = {e.name: bound.maps[e.name].forward(h[e.source - 1]) for e in moved}
        return {**z, **new}

    def drive(i, h, z, beta):
        terms = [constant[i + 1].astype(h[i].dtype)] if i + 1 in constant else []
        for e in inner:
            if e.target == i + 1:
                terms.append(_pooled(e, z[e.name]))
            if e.source == i + 1:
                v = h[e.target - 1]
                v = v if e.pool is None else e.pool.pull(z[e.name], v)
                back = bound.maps[e.name].transposed(v)
                terms.append(_scale(net, e.target - e.source, back) * back)
        if beta is not None and i == net.depth - 1:
            signal = _cost_signal(bound, h[i])
            terms.append(-beta.astype(signal.dtype) * signal)
        return sum(terms[1:], terms[0])

    return Dynamics(bound.states, products, renew, drive, net.activate)


def _cost_signal(bound: _Bound, last: jax.Array) -> jax.Array:
    """dC/dh of the last state."""
    readout = bound.maps.get("readout")
    outputs = _flat(last) if readout is None else readout.forward(last)
    losses, vjp = jax.vjp(lambda z: bound.net.cost(z, bound.label), outputs)
    signal = vjp(jnp.ones_like(losses))[0]
    if readout is None:
        return signal.reshape(last.shape)
    return readout.transposed(signal)


# ---------------------------------------------------------------------- weight gradient


def _weighted(net: _Net, params, batch, phases: Sequence[Phases]) -> jax.Array:
    """Re sum_k w_k sum_b [Phi - beta_k C] of fixed states; its derivative is the update.

    An edge from the input is linear in the states, so theirs are summed over the phases
    first: one product per layer.
    """
    bound, total = _bind(net, params, batch), []
    for e in bound.net.edges:
        scale = _scale(net, e.target - net.depth, bound.x)
        if e.source == 0:
            signal = scale * sum(_weighted_sum(p, e.target - 1) for p in phases)
            total.append((_output(e, bound.maps[e.name], bound.x) * signal).sum())
            continue
        for p in phases:
            z = jax.vmap(partial(_output, e, bound.maps[e.name]))(p.states[e.source - 1])
            target = p.states[e.target - 1]
            target = _as(p.weights, target) * target
            total.append(scale * (z * target).real.sum())
    for p in phases:
        losses = jax.vmap(lambda h: _losses(bound, h))(p.states[-1])
        total.append(
            -(_as(p.weights, losses) * _as(p.points, losses) * losses).real.sum()
        )
    return sum(total[1:], total[0])


def _weighted_sum(p: Phases, i: int) -> jax.Array:
    state = p.states[i]
    return (_as(p.weights, state) * state).sum(0).real


def _scale(net: _Net, layers: int, like: jax.Array) -> jax.Array:
    """f^layers, in the dtype of `like`."""
    return jnp.asarray(net.feedback**layers, like.dtype)


def _as(weights: jax.Array, state: jax.Array) -> jax.Array:
    """Weights (K,) that broadcast against states (K, B, ...)."""
    return weights.reshape(-1, *(1,) * (state.ndim - 1)).astype(state.dtype)


def _losses(bound: _Bound, last: jax.Array) -> jax.Array:
    readout = bound.maps.get("readout")
    outputs = _flat(last) if readout is None else readout.forward(last)
    return bound.net.cost(outputs, bound.label)


def _parts(bound: _Bound) -> dict[str, tuple[Fn, Any]]:
    net, parts = bound.net, {}
    for i, state in enumerate(bound.states):
        fn = net.output_activation if i == net.depth - 1 else net.activation
        parts[f"activation {fn.__name__!r}"] = (fn, state)
    for e in net.edges:
        if e.source > 0 and e.pool is not None:
            z = bound.maps[e.name].forward(bound.states[e.source - 1])
            parts[f"pooling {e.pool.name!r} of {e.name}"] = (e.pool.fn, z)
    readout, cost = bound.maps.get("readout", linear.Linear(_flat, _flat)), net.cost
    outputs = readout.forward(bound.states[-1])
    parts[f"cost {cost.__name__!r}"] = (lambda z: cost(z, bound.label), outputs)
    return parts


def _flat(h: jax.Array) -> jax.Array:
    return h.reshape(h.shape[0], math.prod(h.shape[1:]))
