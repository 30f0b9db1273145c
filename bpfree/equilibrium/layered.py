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

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from bpfree.choices import check_choice
from bpfree.equilibrium import linear, network
from bpfree.equilibrium.activations import ACTIVATIONS
from bpfree.equilibrium.costs import COSTS
from bpfree.equilibrium.energy import Energy
from bpfree.equilibrium.network import Edge, Feedback, Fn, Net
from bpfree.equilibrium.pooling import Pool

Layer = nn.Module | tuple[nn.Module, Pool]
Activation = Literal[
    "shifted_sigmoid", "dsilu", "hard_sigmoid", "relu", "tanh", "identity"
]
Cost = Literal["cross_entropy", "squared_error"]


def layered(
    layers: Sequence[Layer],
    *,
    activation: Activation | Fn = "shifted_sigmoid",
    readout: nn.Module | None = None,
    feedback: Feedback = 1.0,
    cost: Cost | Fn = "cross_entropy",
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
    last = activation if output_activation is None else output_activation
    net = Net(
        tuple(edges),
        len(layers),
        _chosen("activation", activation, Activation, ACTIVATIONS),
        _chosen("output_activation", last, Activation, ACTIVATIONS),
        readout,
        feedback,
        _chosen("cost", cost, Cost, COSTS),
        tuple(image),
        x,
        label,
    )
    return _energy(net)


def _chosen(what: str, value: str | Fn, names: Any, functions: Mapping[str, Fn]) -> Fn:
    """The function `value` names, or `value` itself."""
    if callable(value):
        return value
    check_choice(what, value, names)
    return functions[value]


def _edge(name, source, target, layer) -> Edge:
    module, pool = layer if isinstance(layer, tuple) else (layer, None)
    return Edge(name, source, target, module, pool)


def _energy(net: Net) -> Energy:
    def bind(params, batch):
        return network.bind(net, params, batch)

    def outputs(params, h, batch):
        return network.readout_of(net, params, h[-1]).forward(h[-1])

    return Energy(
        lambda key, x: _init(net, key, x),
        lambda params, batch: network.dynamics(bind(params, batch)),
        outputs,
        lambda params, h, batch: net.cost(outputs(params, h, batch), batch[net.label]),
        lambda params, batch, *phases: network.weighted(bind(params, batch), phases),
        lambda params, batch: network.parts(bind(params, batch)),
    )


def _init(net: Net, key, x) -> dict[str, Any]:
    """The layers' own initialisers, on the shapes that their sources have."""
    params, states = {}, {0: net.shaped(jnp.asarray(x))}
    keys = jax.random.split(key, len(net.edges) + 1)
    for edge, key in zip(net.edges, keys[1:], strict=True):
        params[edge.name], z = linear.init(edge.module, key, states[edge.source])
        state = edge.pooled(z)
        before = states.setdefault(edge.target, state)
        if state.shape != before.shape:
            raise ValueError(
                f"{edge.name} makes {state.shape[1:]}, but state {edge.target} has the "
                f"shape {before.shape[1:]}"
            )
    if net.readout is not None:
        params["readout"] = linear.init(net.readout, keys[0], states[net.depth])[0]
    return params
