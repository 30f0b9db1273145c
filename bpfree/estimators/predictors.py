"""Predictors of the gradient at each node, for `learned_feedback`.

A predictor maps its weights, and the values of the clean pass, to dL_b / dy for every
node y and example b. It never reads the weights of the model.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.estimators.clean_pass import (
    Clean,
    chain_of_blocks,
    ends_of_blocks,
    hidden,
    kernel_inputs,
    losses_of,
    output_gradient,
    responses,
    without_derivative,
)
from bpfree.program.tags import Site
from bpfree.program.trace import NodeTree, name_hash

__all__ = ["Clean", "Predictor", "chained", "direct"]

_SMALL = 1e-3  # of the first weights: wrong feedback in the first steps does lasting harm


class Predictor(NamedTuple):
    """How to predict the gradient at the nodes; an argument of `bpfree.learned_feedback`.

    Attributes:
      init: `(key, clean) -> weights`, from the shapes of `clean`; consumes the key.
      predict: `(weights, clean) -> {node: dL_b/dy}`, shaped as the nodes; exact at the
        last node, where it is the loss's own derivative.
      respond: `(weights, clean, moves) -> {node: change of its value}` for small changes
        `moves` of the values at the nodes; None if the predictor has no model of it.
      dead: `clean -> names` of hidden nodes for which it has no derivative to work with.

    Example:
        >>> bpfree.predictors.direct().respond is None
        True
    """

    init: Callable[[jax.Array, Clean], Any]
    predict: Callable[[Any, Clean], NodeTree]
    respond: Callable[[Any, Clean, NodeTree], NodeTree] | None
    dead: Callable[[Clean], list[str]]


# ------------------------------------------------------------------------------ chained


def chained() -> Predictor:
    r"""Each node's prediction is made of the next one's, through learned weights.

    With f_l the code between node l and node l + 1, and V of the shape of the model's
    parameters but never read from them,

    .. math:: \hat g_l = \Big(\frac{\partial f_l(y_l; V)}{\partial y_l}\Big)^{\!T}
        \hat g_{l+1}, \qquad \hat g_L = \frac{\partial L}{\partial y_L}

    It takes any model, several successors of a node included, and shares weights where
    the model does. Matrices start near zero, and vectors (biases, scales of norms) at the
    values of the model's. A block without a derivative (a threshold) is an error.

    Example:
        >>> tx = bpfree.learned_feedback(
        ...     loss_fn, example_batch=batch, predictor=bpfree.predictors.chained()
        ... )
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, state.inner.weights)
        {'w1': (3, 4), 'w2': (4, 2)}
    """

    def init(key, clean):
        leaves, tree = jax.tree.flatten(clean.args[0])
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(tree, map(_small_like, keys, leaves))

    def predict(weights, clean):
        def chain(values):
            return chain_of_blocks(clean, weights, values)

        standing, vjp = jax.vjp(chain, clean.values)
        found = vjp(output_gradient(clean, standing))[0]
        return {site.name: found[site.name] for site in clean.program.nodes}

    def respond(weights, clean, moves):
        return responses(clean, weights, moves)

    def dead(clean):
        def ends(clean, values):
            return ends_of_blocks(clean, clean.args[0], values), losses_of(clean, values)

        return without_derivative(ends, clean, hidden(clean.program))

    return Predictor(init, predict, respond, dead)


def _small_like(key, leaf):
    if leaf.ndim < 2 or not leaf.size:
        return jnp.array(leaf, copy=True)  # a donated state must not take the model's
    lecun = jax.nn.initializers.lecun_normal()
    made = (_SMALL * lecun(key, leaf.shape)).astype(leaf.dtype)
    place = getattr(leaf, "sharding", None)  # that of one device would tie it there
    return (
        made if place is None or place.num_devices == 1 else jax.device_put(made, place)
    )


# ------------------------------------------------------------------------------- direct


def direct(
    gate: Literal["derivative", "learned"] = "derivative",
    per: Literal["position", "channel"] = "position",
) -> Predictor:
    r"""A matrix for each node, from the error at the last one.

    .. math:: \hat g_l = \text{gate}_l \odot (B_l\, e), \qquad
        e = \frac{\partial L}{\partial y_L}

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
        ...     teacher="losses",
        ... )
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> state.inner.weights["hidden"]["matrix"].shape
        (2, 4)
    """
    if gate not in _GATES or per not in ("position", "channel"):
        raise ValueError(
            f"gate={gate!r}, per={per!r}: choose gate from {tuple(_GATES)} and per from "
            "('position', 'channel')"
        )

    def init(key, clean):
        rows = _width(clean.program.nodes[-1])
        weights = {}
        for site in hidden(clean.program):
            mine = jax.random.fold_in(key, name_hash(site.name))
            columns = _width(site) if per == "position" else _channels(site)
            matrix = _SMALL * jax.random.normal(mine, (rows, columns), site.dtype)
            one = jnp.ones(_channels(site), site.dtype)
            weights[site.name] = {"matrix": matrix, "slope": one, "shift": 0 * one}
        return weights

    def predict(weights, clean):
        last = clean.program.nodes[-1]
        error = output_gradient(clean, clean.values)[last.name]
        rows = jnp.moveaxis(error, last.batch_axis, 0)
        rows = rows.reshape(len(rows), -1)
        gates = _GATES[gate](weights, clean)
        found = {last.name: error}
        for site in hidden(clean.program):
            product = rows @ weights[site.name]["matrix"].astype(rows.dtype)
            found[site.name] = gates[site.name] * _shaped_as(product, site)
        return {name: g.astype(clean.values[name].dtype) for name, g in found.items()}

    def dead(clean):
        if gate == "learned":
            return []
        return without_derivative(kernel_inputs, clean, hidden(clean.program))

    return Predictor(init, predict, None, dead)


def _derivative_gate(weights, clean: Clean) -> NodeTree:
    del weights

    def total(values):
        return sum(tap.sum() for tap in kernel_inputs(clean, values).values())

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

    return {site.name: gate(site) for site in hidden(clean.program)}


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
