"""Arrays whose first axis is spread over devices; of the others nothing is said."""

import math

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def count(sharding: NamedSharding) -> int:
    """The devices over which the first axis of `sharding` spreads."""
    axes = sharding.spec[0]
    names = (axes,) if isinstance(axes, str) else axes
    return math.prod(sharding.mesh.shape[name] for name in names)


def spread(sharding: NamedSharding, a: jax.Array) -> jax.Array:
    """The array with its first axis over the devices.

    To say anything of the other axes would gather a batch that is sharded over them.
    """
    others = [PartitionSpec.UNCONSTRAINED] * (a.ndim - 1)
    layout = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], *others))
    return lax.with_sharding_constraint(a, layout)
