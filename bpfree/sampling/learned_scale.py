"""A sigma that is learned, by the likelihood ratio itself.

There is one for each channel j (the last axis of a node). With v = y + sigma eps, s the
score and c the baseline,

    dJ / d log sigma_j = E[ (L - c) sum over the channel's entries (s(eps) eps - 1) ],

which for Gaussian noise is the rule eps^2 - 1.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from bpfree.program.tags import Site
from bpfree.program.trace import NodeTree
from bpfree.sampling.scale import Sigma, scales


class Learned(NamedTuple):
    """State of a learned sigma.

    Attributes:
      log_sigma: {node: (channels,)}, float32.
      opt_state: of its own optimiser.
    """

    log_sigma: NodeTree
    opt_state: Any


def init_scales(sigma: Sigma, optimizer: optax.GradientTransformation | None, nodes):
    """What the estimator's state holds of sigma: a `Learned`, or () if it is not learned.

    Args:
      sigma: where the learning begins.
      optimizer: of log sigma; None if sigma is not learned.
      nodes: `() -> tuple of Site`, called only if sigma is learned, because finding the
        nodes takes an example of a batch.
    """
    if optimizer is None:
        return ()
    sites = nodes()
    first = scales(sigma, jnp.zeros((), jnp.int32), sites)
    logs = {
        s.name: jnp.full(_channels(s), jnp.log(first[s.name]), jnp.float32) for s in sites
    }
    return Learned(logs, optimizer.init(logs))


def current_scales(sigma: Sigma, state, step, nodes: tuple[Site, ...]) -> NodeTree:
    """The scales of this step: {node: () or (channels,)}."""
    if isinstance(state, Learned):
        return {s.name: jnp.exp(state.log_sigma[s.name]) for s in nodes}
    return scales(sigma, step, nodes)


def updated_scales(state, slopes: NodeTree, optimizer):
    """The state after a step along `slopes`, {node: dJ / d log sigma}."""
    if not isinstance(state, Learned):
        return state
    updates, opt_state = optimizer.update(slopes, state.opt_state, state.log_sigma)
    return Learned(optax.apply_updates(state.log_sigma, updates), opt_state)


def scale_slopes(weights, noise, score, nodes: tuple[Site, ...]) -> NodeTree:
    """The sum over samples, examples and entries of weights (s(eps) eps - 1).

    Args:
      weights: {node: centred losses over the batch size, broadcasting to its noise}.
      noise: {node: (K, *node shape)}.
    """
    found = {}
    for site in nodes:
        z = noise[site.name]
        excess = score(z) * z - 1
        own = weights[site.name] * excess
        rest = tuple(range(z.ndim - len(_channels(site))))
        found[site.name] = own.sum(rest)
    return found


def _channels(site: Site) -> tuple[int, ...]:
    """Shape of a learned sigma: the last axis, unless that is the batch's."""
    last = len(site.shape) - 1
    return () if last < 0 or site.batch_axis == last else site.shape[-1:]
