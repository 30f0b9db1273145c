r"""Energies: a primitive function Phi, a cost C, and the dynamics towards equilibrium.

With sigma the activation, states h_1 ... h_L and nudging beta the network relaxes to

    h_l = sigma(d/dh_l [Phi(theta, h, x) - beta C(theta, h, label)]),

a stationary point of F = sum G(h) - Phi + beta C with G' = sigma^-1. G is never needed:
dF/dtheta = -d(Phi - beta C)/dtheta at fixed states.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

States = tuple[jax.Array, ...]


class Dynamics(NamedTuple):
    """An energy with its parameters and batch: what a sweep evaluates.

    Products are what the drives have in common, W_l h_l, say; whoever changes states
    renews them.

    Attributes:
      zeros: states (B, ...) to start from.
      products: `(states) -> products`.
      renew: `(states, products, group) -> products` after a change of the states at the
        positions `group`.
      drive: `(i, states, products, beta) -> dPhi/dh_l - beta dC/dh_l`; beta is (), or
        None for the free network.
      activate: `(i, drive) -> state`.
    """

    zeros: States
    products: Callable[[States], Any]
    renew: Callable[[States, Any, tuple[int, ...]], Any]
    drive: Callable[[int, States, Any, jax.Array | None], jax.Array]
    activate: Callable[[int, jax.Array], jax.Array]

    @property
    def dtype(self) -> Any:
        """Of the states at rest, real."""
        return self.zeros[0].dtype

    @property
    def batch_size(self) -> int:
        return self.zeros[0].shape[0]

    def stacked(self) -> "Dynamics":
        """The dynamics of K phases side by side: K in front of states and points."""

        def drive(i, states, products, points):
            return jax.vmap(partial(self.drive, i))(states, products, points)

        def renew(states, products, group):
            return jax.vmap(lambda h, z: self.renew(h, z, group))(states, products)

        products = jax.vmap(self.products)
        return self._replace(products=products, renew=renew, drive=drive)


class Phases(NamedTuple):
    """Equilibria of K nudged networks: states (K, B, ...), points and weights (K,)."""

    states: States
    points: jax.Array
    weights: jax.Array


class Energy(NamedTuple):
    """What equilibrium propagation needs to know of a network.

    Attributes:
      init: `(key, x) -> params`.
      bind: `(params, batch) -> Dynamics`.
      outputs: `(params, states, batch) -> (B, classes)`, what the cost reads.
      cost: `(params, states, batch) -> (B,)`.
      weighted: `(params, batch, phases...) -> ()`: Re sum_k w_k sum_b [Phi - beta_k C].
      parts: `(params, batch) -> {name: (function, example)}`, to be holomorphic in their
        argument where the nudging is complex.

    Example:
        >>> from flax import linen as nn
        >>> energy = bpfree.layered([nn.Dense(4), nn.Dense(2)])
        >>> batch = {"x": jnp.ones((5, 3)), "label": jnp.zeros(5, int)}
        >>> params = energy.init(jax.random.key(0), batch["x"])
        >>> [state.shape for state in energy.bind(params, batch).zeros]
        [(5, 4), (5, 2)]
    """

    init: Callable[[jax.Array, Any], Any]
    bind: Callable[[Any, Any], Dynamics]
    outputs: Callable[[Any, States, Any], jax.Array]
    cost: Callable[[Any, States, Any], jax.Array]
    weighted: Callable[..., jax.Array]
    parts: Callable[[Any, Any], dict[str, tuple[Callable[..., Any], Any]]]


def primitive(
    phi: Callable[[Any, States, Any], jax.Array],
    cost: Callable[[Any, States, Any], jax.Array],
    *,
    states: Callable[[Any, Any], States],
    activation: Callable[[jax.Array], jax.Array],
    outputs: Callable[[Any, States, Any], jax.Array] | None = None,
    init: Callable[[jax.Array, Any], Any] | None = None,
) -> Energy:
    """An energy written as a scalar function; its dynamics come from autodiff.

    Args:
      phi: `(params, states, batch) -> (B,)`, the primitive function without its cost.
      cost: `(params, states, batch) -> (B,)`.
      states: `(params, batch) -> tuple of (B, ...)`, where relaxation starts.
      activation: sigma of the update h <- sigma(dPhi/dh), elementwise.
      outputs: `(params, states, batch) -> (B, classes)` for predictions; the last state
        by default.
      init: `(key, x) -> params`.

    For complex nudging phi and cost must take complex states and real parameters.

    Example:
        >>> def phi(params, states, batch):  # -> (B,)
        ...     return ((batch["x"] @ params["w"]) * states[0]).sum(1)
        >>> energy = bpfree.primitive(
        ...     phi,
        ...     lambda params, states, batch: ((states[0] - batch["t"]) ** 2).sum(1),
        ...     states=lambda params, batch: (jnp.zeros((len(batch["x"]), 2)),),
        ...     activation=bpfree.equilibrium.shifted_sigmoid,
        ... )
        >>> params = {"w": jnp.ones((3, 2))}
        >>> batch = {"x": jnp.ones((5, 3)), "t": jnp.ones((5, 2))}
        >>> tx = bpfree.equilibrium_propagation(energy)
        >>> gradient, state = tx.update(None, tx.init(params), params, batch=batch)
        >>> gradient["w"].shape
        (3, 2)
    """

    def total(params, batch, states, beta):
        value = phi(params, states, batch)
        if beta is None:
            return value
        return value - beta * cost(params, states, batch).astype(beta.dtype)

    def bind(params, batch) -> Dynamics:
        start = tuple(states(params, batch))

        def drive(i, h, products, beta):
            def of_one(one):
                return total(params, batch, (*h[:i], one, *h[i + 1 :]), beta)

            value, vjp = jax.vjp(of_one, h[i])
            return vjp(jnp.ones_like(value))[0]

        return Dynamics(
            start,
            lambda h: (),
            lambda h, products, group: (),
            drive,
            lambda i, z: activation(z),
        )

    def weighted(params, batch, *phases):
        def one(h, point, weight):
            value = total(params, batch, h, point)
            return (weight * value.astype(weight.dtype)).real.sum()

        sums = [jax.vmap(one)(*p).sum() for p in phases]
        return jnp.stack(sums).sum()

    def parts(params, batch):
        h = tuple(states(params, batch))
        return {
            "phi": (lambda h: phi(params, h, batch), h),
            "cost": (lambda h: cost(params, h, batch), h),
            f"activation {_name(activation)!r}": (activation, h[-1]),
        }

    return Energy(
        init or _no_init,
        bind,
        outputs or (lambda params, h, batch: h[-1]),
        cost,
        weighted,
        parts,
    )


def _no_init(key, x):
    raise ValueError("this energy has no init: pass init= to bpfree.primitive")


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
