"""A radius for every example: the real phases of none may move its outputs too far.

The disc of beta in which an equilibrium is analytic ends where the nudging has changed
the outputs by the order of their natural scale, 1 for logits: there the softmax of the
cost has its poles, and equilibria merge or vanish. So the phases are relaxed with the
radius of the rule, and those of examples whose outputs come to lie further apart than
`limit` again, from the free state, with

    radius <- radius limit / (2 distance),

a few times over if need be. Batches without such examples are relaxed once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.equilibrium.energy import States
from bpfree.equilibrium.relaxation import Relaxed, as_rows

Outputs = Callable[[States], jax.Array]

_ROUNDS = 5
_SMALLEST = 0.1  # by how much one round may lower a radius


def shrunk(
    limit: float | jax.Array,
    outputs: Outputs,
    free: States,
    radius: jax.Array,
    start: States,
    relax: Callable[[jax.Array, States], Relaxed],
) -> tuple[jax.Array, Relaxed]:
    """(radius (B,), real phases) with outputs at most `limit` apart.

    Args:
      outputs: `(states (B, ...)) -> (B, classes)`.
      free: states (1, B, ...).
      radius: (B,), to begin with.
      start: states (K, B, ...) of the phases.
      relax: `(radius, start) -> Relaxed` of K phases.
    """
    shapes = jax.eval_shape(relax, radius, start)

    def once(carry):
        rounds, radius, found, far = carry
        ratio = jnp.clip(0.5 * limit / far, _SMALLEST, 1.0)
        again = ~(far <= limit)
        radius = jnp.where(again, radius * jnp.nan_to_num(ratio, nan=_SMALLEST), radius)
        begin = tuple(
            jnp.where(as_rows(again[None], h), s, h)
            for s, h in zip(start, found.states, strict=True)
        )
        new = relax(radius, begin)
        new = new._replace(sweeps=new.sweeps + found.sweeps)
        return rounds + 1, radius, new, distance(outputs, new.states, free)

    def go_on(carry):
        rounds, *_, far = carry
        return (rounds < _ROUNDS) & ~(far <= limit).all()

    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    nothing = nothing._replace(states=start)
    # A distance of half the limit and no more: the first round keeps the radius.
    carry = once((jnp.int32(0), radius, nothing, jnp.full_like(radius, 0.5 * limit)))
    _, radius, found, _ = lax.while_loop(go_on, once, carry)
    return radius, found


def distance(outputs: Outputs, states: States, free: States) -> jax.Array:
    """How far apart the outputs of K phases lie, (B,); of one phase, from the free's."""
    z = jax.vmap(outputs)(states)
    first = z[:1] if len(z) > 1 else jax.vmap(outputs)(free)
    return jnp.sqrt(jnp.square(z - first).sum(-1)).max(0)
