"""A predictor without a chain: a matrix for each node, from the error at the last one."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from bpfree.choices import check_choice
from bpfree.estimators import clean_pass
from bpfree.estimators.adam import adam
from bpfree.estimators.clean_pass import Clean, Predictor
from bpfree.program.tags import Site
from bpfree.program.trace import NodeTree, name_hash

SMALL = 1e-3  # of the first weights: wrong feedback in the first steps does lasting harm

Gate = Literal["derivative", "learned"]
Per = Literal["position", "channel"]


def direct(gate: Gate = "derivative", per: Per = "position") -> Predictor:
    r"""A matrix for each node, from the error at the last one.

    .. math:: \hat g_l = \text{gate}_l \odot (B_l\, e), \qquad
        e = \frac{\partial L}{\partial y_L}

    All layers learn at once: no product of one node's feedback depends on another's.

    Taught by "responses", with z the noise at the nodes, it descends the squared error of
    its guess of how the last node moves,

    .. math:: \frac{1}{2 (N + n)} \sum_{k,b} \Big| \sum_l B_l^T (\text{gate}_l \odot z_l)
        - \frac{y_L(z) - y_L(0)}{\sigma} \Big|^2

    which is the transpose of the feedback: as many numbers for each of the N noisy
    examples as the last node has entries, where "losses" have one, and they do not fade
    with the error. n counts the entries of the hidden nodes: by N + n, and not N, any
    rate below 1 is stable (normalised least mean squares). The default fit is
    `optax.sgd(0.5)` of the matrices and `optax.adam(1e-2, b1=0.5, b2=0.99)` of the
    learned gates; with per="channel", whose sums over positions have no such bound, this
    Adam for all.

    Args:
      gate: "derivative", of the sum of the kernel inputs that the node feeds, by the
        node: that of the activation.
        "learned", sigmoid(a y + b) with a and b for each channel; it needs no
        derivative, so thresholds train.
      per: "position", a row of B_l for each entry of the node; "channel", one for each
        entry of its last axis but the batch's.

    Raises:
      ValueError: an unknown choice.

    Example:
        >>> tx = bpfree.learned_feedback(
        ...     loss_fn,
        ...     example_batch=batch,
        ...     predictor=bpfree.predictors.direct(gate="learned"),
        ...     num_samples=4,
        ... )
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> state.inner.weights["hidden"]["matrix"].shape
        (2, 4)
    """
    check_choice("gate", gate, Gate)
    check_choice("per", per, Per)

    def init(key, clean):
        rows = _width(clean.program.nodes[-1])
        weights = {}
        for site in clean_pass.hidden(clean.program):
            mine = jax.random.fold_in(key, name_hash(site.name))
            columns = _width(site) if per == "position" else _channels(site)
            matrix = SMALL * jax.random.normal(mine, (rows, columns), site.dtype)
            one = jnp.ones(_channels(site), site.dtype)
            weights[site.name] = {"matrix": matrix, "slope": one, "shift": 0 * one}
        return weights

    def feedback(weights, clean, error):
        """Of the hidden nodes; linear in the error."""
        last = clean.program.nodes[-1]
        rows = jnp.moveaxis(error, last.batch_axis, 0)
        rows = rows.reshape(len(rows), -1)
        gates, found = _GATES[gate](weights, clean), {}
        for site in clean_pass.hidden(clean.program):
            product = rows @ weights[site.name]["matrix"].astype(rows.dtype)
            g = gates[site.name] * _shaped_as(product, site)
            found[site.name] = g.astype(clean.values[site.name].dtype)
        return found

    def predict(weights, clean):
        last = clean.program.nodes[-1].name
        error = clean_pass.output_gradient(clean, clean.values)[last]
        found = feedback(weights, clean, error)
        return {**found, last: error.astype(clean.values[last].dtype)}

    def respond(weights, clean, moves):
        last = clean.program.nodes[-1].name
        forward = jax.linear_transpose(
            partial(feedback, weights, clean), clean.values[last]
        )
        return {last: forward(moves)[0]}

    def dead(clean):
        if gate == "learned":
            return []
        inputs, hidden = clean_pass.kernel_inputs, clean_pass.hidden(clean.program)
        return clean_pass.without_derivative(inputs, clean, hidden)

    return Predictor(init, predict, respond, dead, "rest", _FITS[per])


def _least_mean_squares() -> optax.GradientTransformation:
    """Of the matrices; the gates, which are a few numbers a channel, by Adam."""
    gates = adam(1e-2, b1=0.5, b2=0.99)
    kinds = {"matrix": optax.sgd(0.5), "slope": gates, "shift": gates}
    return optax.partition(
        kinds, lambda weights: {name: {k: k for k in w} for name, w in weights.items()}
    )


_FITS = {"position": _least_mean_squares, "channel": lambda: adam(1e-2, b1=0.5, b2=0.99)}


def _derivative_gate(weights, clean: Clean) -> NodeTree:
    del weights

    def total(values):
        return sum(tap.sum() for tap in clean_pass.kernel_inputs(clean, values).values())

    return jax.grad(total)(clean.values)


def _learned_gate(weights, clean: Clean) -> NodeTree:
    def gate(site):
        of_channel = [1] * len(site.shape)
        for axis in site.example_axes[-1:]:
            of_channel[axis] = -1
        slope, shift = (
            weights[site.name][k].reshape(of_channel) for k in ("slope", "shift")
        )
        return jax.nn.sigmoid(slope * clean.values[site.name] + shift)

    return {site.name: gate(site) for site in clean_pass.hidden(clean.program)}


_GATES = {"derivative": _derivative_gate, "learned": _learned_gate}


def _example_shape(site: Site) -> tuple[int, ...]:
    return tuple(site.shape[axis] for axis in site.example_axes)


def _channels(site: Site) -> int:
    """Size of the last axis that is not the batch's."""
    return (1, *_example_shape(site))[-1]


def _width(site: Site) -> int:
    """Entries of a node that belong to one example."""
    return math.prod(_example_shape(site))


def _shaped_as(product: jax.Array, site: Site) -> jax.Array:
    """(B, width) or (B, channels) in the shape of the node."""
    rest = _example_shape(site)
    if product.shape[1] != math.prod(rest):
        product = product.reshape(-1, *[1] * (len(rest) - 1), rest[-1])
        product = jnp.broadcast_to(product, (product.shape[0], *rest))
    assert site.batch_axis is not None  # of every node that a direct predictor takes
    return jnp.moveaxis(product.reshape(-1, *rest), 0, site.batch_axis)
