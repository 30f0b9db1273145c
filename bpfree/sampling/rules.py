"""Credit rules: which losses answer for the noise at which part of a node.

An estimator centres the losses and hands them to a rule, which says what multiplies
each entry of the node's noise:

    rule(centred losses (samples, *loss shape), node) -> array that broadcasts to
                                                         (samples, *node shape)

Times the noise of an entry, a loss which that entry cannot reach has mean zero: leaving
it out does not move the expectation, and takes its variance away.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.program.tags import Site
from bpfree.sampling.weighting import broadcast

Rule = Callable[[jax.Array, Site], jax.Array]


def per_example(centred: jax.Array, node: Site) -> jax.Array:
    """All losses of an example answer for its part of the node: the default.

    Losses (B,), or (B, T) summed over T, stand at the node's batch axis. A value shared
    by the batch takes the sum over examples, and one loss () per batch answers for all.
    """
    by_example = centred.sum(2) if centred.ndim == 3 else centred
    return broadcast(by_example, 1 + len(node.shape), node.batch_axis)


def causal(axis: int = 0, reverse: bool = False, window: int | None = None) -> Rule:
    r"""Credit rule for losses (B, T), one for each example and time step.

    .. math:: w_{k,b,t} = \sum_{t \le t' < t + W} (L_{k,b,t'} - c_{b,t'})

    A node at step t is credited with the losses from t on: its noise reaches no earlier
    one. A node without a time axis (it is shared by the batch, or `axis` is its batch
    axis) is credited with all losses of the example.

    Contract: the expectation of `per_example`, with less variance, if the program is
    causal and the node reaches no loss beyond the window; with a shorter window biased,
    and with less variance still. Nothing checks what a node reaches.

    Args:
      axis: the node's time axis: 0 is where `lax.scan` puts it; 1 for values (B, T, ...).
        Where nodes differ, pass `credit=` a mapping from their names to rules.
      reverse: time runs backwards (`lax.scan(..., reverse=True)`): losses up to t.
      window: W >= 1, the losses that answer; None for all from t on. 1 is the loss of the
        step itself: exact for nodes after the last exchange between steps, such as
        those after a transformer's last attention.

    Returns:
      A rule, for `credit=`.

    Raises:
      ValueError: a window below 1; and when traced, losses that are not (B, T), or a
        node whose axis is not T long.

    Example:
        >>> def stepwise(params, batch):  # -> losses (B, T)
        ...     def step(h, x):
        ...         h = jnp.tanh(bpfree.node(x @ params["w"] + h, "cell"))
        ...         return h, (h**2).sum(1)
        ...     return jax.lax.scan(step, jnp.zeros((5, 2)), batch["x"])[1].T
        >>> tx = bpfree.node_perturbation(stepwise, num_samples=4, credit=bpfree.causal())
        >>> weights, sequence = {"w": jnp.ones((3, 2))}, {"x": jnp.ones((7, 5, 3))}
        >>> tx.update(None, tx.init(weights), weights, batch=sequence)[0]["w"].shape
        (3, 2)
    """
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1")

    def future(losses):
        last = losses.ndim - 1
        if window is None or window >= losses.shape[-1]:
            return lax.cumsum(losses, axis=last, reverse=not reverse)
        beyond = (window - 1, 0) if reverse else (0, window - 1)
        sizes, padding = (*[1] * last, window), (*[(0, 0)] * last, beyond)
        zero = np.zeros((), losses.dtype)
        return lax.reduce_window(losses, zero, lax.add, sizes, [1] * len(sizes), padding)

    def rule(centred, node):
        if centred.ndim != 3:
            raise ValueError(
                "bpfree.causal needs losses of shape (B, T), one for each example and "
                f"time step; the loss function returns {centred.shape[1:]}"
            )
        return _along(future, axis, centred, node)

    return rule


def within_hops(adjacency, hops: int, axis: int = 1) -> Rule:
    r"""Credit rule for losses on the N nodes of a graph, (N,) or (B, N).

    .. math:: w_{k,n} = \sum_{m:\ d(n, m) \le h} (L_{k,m} - c_m)

    The value at graph node n is credited with the losses at most h hops away, d(n, m)
    being the number of edges from n to m.

    Contract: the expectation of one loss () for the whole graph, with less variance, if
    what follows the value passes messages over at most `hops` edges; with fewer hops
    biased. Of L message-passing layers, a pre-activation after the l-th is L - l hops
    from the loss: pass `credit=` a mapping from names to rules.

    Args:
      adjacency: (N, N), nonzero at [m, n] if m reads n in one hop (so A @ H is one).
      hops: h >= 0; 0 is the loss at the node itself.
      axis: of the N graph nodes in values (B, N, ...), for losses (B, N); or in values
        shared by the batch, for losses (N,) of one graph. Values with a batch axis have
        the graph nodes there if losses are (N,), and `axis` is not read.

    Returns:
      A rule, for `credit=`.

    Raises:
      ValueError: an adjacency that is not square, negative hops; and when traced, losses
        or an axis that do not have N entries.

    Example:
        >>> ring = jnp.roll(jnp.eye(5), 1, axis=0)
        >>> def on_graph(params, features):  # -> losses (N,)
        ...     y = bpfree.node(ring @ (features @ params["w"]), "y")
        ...     return (y**2).sum(1)
        >>> tx = bpfree.node_perturbation(
        ...     on_graph, num_samples=4, credit=bpfree.within_hops(ring, 0)
        ... )
        >>> weights, features = {"w": jnp.ones((3, 2))}, jnp.ones((5, 3))
        >>> tx.update(None, tx.init(weights), weights, batch=features)[0]["w"].shape
        (3, 2)
    """
    edges = np.asarray(adjacency) != 0
    if edges.ndim != 2 or edges.shape[0] != edges.shape[1]:
        raise ValueError(f"adjacency must be (N, N), got shape {edges.shape}")
    if hops < 0:
        raise ValueError(f"hops={hops} must not be negative")
    size = len(edges)
    step = (edges | np.eye(size, dtype=bool)).astype(np.float32)
    reads = np.eye(size, dtype=np.float32)
    for _ in range(min(hops, size)):
        reads = np.minimum(reads @ step, 1)

    def nearby(losses):
        return losses @ jnp.asarray(reads, losses.dtype)

    def graph_axis(node):
        if node.batch_axis is not None:
            return node.batch_axis
        _check_length(axis, size, node)
        return axis

    def rule(centred, node):
        if centred.ndim == 1 or centred.shape[-1] != size:
            raise ValueError(
                f"bpfree.within_hops needs losses (N,) or (B, N) on the N = {size} nodes "
                f"of the graph; the loss function returns {centred.shape[1:]}"
            )
        if centred.ndim == 2:
            return spread_over(node, nearby(centred), graph_axis(node))
        return _along(nearby, axis, centred, node)

    return rule


def _along(spread, axis: int, centred: jax.Array, node: Site) -> jax.Array:
    """Losses (samples, B, T) spread along T, for axes (batch, `axis`) of the node."""
    if node.batch_axis is None or axis == node.batch_axis:
        return per_example(centred, node)
    _check_length(axis, centred.shape[-1], node)
    return spread_over(node, spread(centred), node.batch_axis, axis)


def _check_length(axis: int, length: int, node: Site) -> None:
    if not 0 <= axis < len(node.shape) or node.shape[axis] != length:
        raise ValueError(
            f"node {node.name!r} has shape {node.shape}, whose axis {axis} is not the "
            f"{length} of the losses. Pass the right axis=, or a mapping from node names "
            "to rules as credit=."
        )


def spread_over(node: Site, weights: jax.Array, *axes: int) -> jax.Array:
    """(samples, *sizes) with its sizes at `axes` of the node and 1 at the others."""
    order = np.argsort(axes)
    weights = weights.transpose(0, *(1 + order))
    shape = [weights.shape[0], *[1] * len(node.shape)]
    for axis, size in zip(sorted(axes), weights.shape[1:], strict=True):
        shape[1 + axis] = size
    return weights.reshape(shape)
