"""The scale of the noise: fixed, scheduled, per node, or learned.

Learned per channel j (the last axis of a node), by the likelihood ratio itself. With
v = y + sigma eps, s the score and c the baseline,

    dJ / d log sigma_j = E[ (L - c) sum over the channel's entries (s(eps) eps - 1) ],

which for Gaussian noise is the rule eps^2 - 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bpfree import program as _program
from bpfree._jaxpr import Site
from bpfree.resolution import resolution, smallest

Number = float | jax.Array | Callable[[jax.Array], jax.Array]
Sigma = Number | Mapping[str, Number]


class Learned(NamedTuple):
    """State of a learned sigma.

    Attributes:
      log_sigma: {node: (channels,)}, float32.
      opt_state: of its own optimiser.
    """

    log_sigma: _program.NodeTree
    opt_state: Any


def init(sigma: Sigma, optimizer: optax.GradientTransformation | None, nodes):
    """The estimator's own state: () unless sigma is learned.

    `nodes` is called for the sites only if it is: `() -> tuple of Site`.
    """
    if optimizer is None:
        return ()
    sites = nodes()
    first = scales(sigma, jnp.zeros((), jnp.int32), sites)
    logs = {
        s.name: jnp.full(_channels(s), jnp.log(first[s.name]), jnp.float32) for s in sites
    }
    return Learned(logs, optimizer.init(logs))


def scales(sigma: Sigma, step, nodes: tuple[Site, ...]) -> _program.NodeTree:
    """{node: float32 ()} of a number, a schedule, or a mapping from names to them."""
    if not isinstance(sigma, Mapping):
        value = at(sigma, step)
        return {s.name: value for s in nodes}
    names = {s.name for s in nodes}
    if names != set(sigma):
        raise ValueError(
            f"sigma names the nodes {sorted(sigma)}; those to be perturbed are "
            f"{sorted(names)}"
        )
    return {name: at(value, step) for name, value in sigma.items()}


def current(sigma: Sigma, state, step, nodes: tuple[Site, ...]) -> _program.NodeTree:
    """The scales of this step: {node: () or (channels,)}."""
    if isinstance(state, Learned):
        return {s.name: jnp.exp(state.log_sigma[s.name]) for s in nodes}
    return scales(sigma, step, nodes)


def updated(state, slopes: _program.NodeTree, optimizer):
    """The state after a step along `slopes`, {node: dJ / d log sigma}."""
    if not isinstance(state, Learned):
        return state
    updates, opt_state = optimizer.update(slopes, state.opt_state, state.log_sigma)
    return Learned(optax.apply_updates(state.log_sigma, updates), opt_state)


def slopes(beside, noise, score, nodes: tuple[Site, ...]) -> _program.NodeTree:
    """The sum over samples, examples and entries of weights (s(eps) eps - 1).

    Args:
      beside: {node: centred losses over the batch size, broadcasting to its noise}.
      noise: {node: (K, *node shape)}.
    """
    found = {}
    for site in nodes:
        z = noise[site.name]
        excess = score(z) * z - 1
        own = beside[site.name] * excess
        rest = tuple(range(z.ndim - len(_channels(site))))
        found[site.name] = own.sum(rest)
    return found


def times(sigma: jax.Array, value: jax.Array) -> jax.Array:
    """sigma * value, with a sigma () or (channels,) that belongs to the last axis."""
    return sigma.reshape((1,) * (value.ndim - sigma.ndim) + sigma.shape) * value


def _channels(site: Site) -> tuple[int, ...]:
    """Shape of a learned sigma: the last axis, unless that is the batch's."""
    last = len(site.shape) - 1
    return () if last < 0 or site.batch_axis == last else site.shape[-1:]


def at(sigma: Number, step) -> jax.Array:
    value = jnp.asarray(sigma(step) if callable(sigma) else sigma, jnp.float32)
    if value.ndim:
        raise ValueError(f"sigma must be one number, got shape {value.shape}")
    return value


def check(sigma: Sigma | None) -> None:
    """Concrete values are checked here; traced ones set a fault in the state."""
    for value in sigma.values() if isinstance(sigma, Mapping) else (sigma,):
        check_number(value)


def check_number(sigma: Number | None) -> None:
    """The same for one number or schedule, where there is one sigma for all."""
    number = concrete(sigma)
    if number is not None and not (math.isfinite(number) and number > 0):
        raise ValueError(f"sigma={number} must be a positive number")


def concrete(sigma: Number | None) -> float | None:
    """The number it is, or None where only a running step can say."""
    if callable(sigma):
        return None
    if sigma is None or isinstance(sigma, (str, Mapping)) or jnp.ndim(sigma):
        raise ValueError(
            "sigma must be one number or a schedule (or, for estimators with noise at "
            f"the nodes, a mapping from their names to these); got {sigma!r}"
        )
    try:
        return float(sigma)
    except jax.errors.ConcretizationTypeError:
        return None


def check_resolution(sigma: Sigma, program: _program.Program) -> None:
    """ValueError for a concrete sigma that values of size 1 lose to rounding."""
    types = [(f"node {s.name!r}", s.name, s.dtype) for s in program.nodes]
    for what, name, dtype in [*types, ("the losses", "", program.losses.dtype)]:
        given = sigma.get(name) if isinstance(sigma, Mapping) else sigma
        number = None if given is None else concrete(given)
        if number is not None and number < smallest(dtype):
            raise ValueError(
                f"sigma={number:g} is lost to rounding in {what}, {dtype} resolved to "
                f"{resolution(dtype):.1e}: the smallest safe sigma for values of size 1 "
                f"is {smallest(dtype):.2g}. Raise sigma or the precision (dtype=, "
                "jax.default_matmul_precision('highest'))."
            )
