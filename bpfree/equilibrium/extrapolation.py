"""Complex phases from real ones: where they begin, and where they go back to if lost."""

import jax.numpy as jnp
import numpy as np

from bpfree.equilibrium.energy import States
from bpfree.equilibrium.nudging import Nudging
from bpfree.equilibrium.relaxation import ASTRAY, Relaxed
from bpfree.equilibrium.states import minus, norm


def extrapolated(nudging: Nudging, free: States, real: States | None, dtype) -> States:
    """The polynomial in beta through the free state and the real phases (Lagrange).

    Args:
      free: states (1, B, ...), at beta = 0.
      real: of the rule's real points (K, B, ...); None: the free state alone is known.
      dtype: of the result, complex: states at the rule's complex points.
    """
    known = [] if real is None else [nudging.roots[i].real for i in nudging.real]
    rows = np.flatnonzero(known)
    at = np.array([0.0, *(known[i] for i in rows)])
    roots = np.array([nudging.roots[i] for i in nudging.complex])
    basis = np.ones((len(roots), len(at)), complex)
    for j, point in enumerate(at):
        for other in np.delete(at, j):
            basis[:, j] *= (roots - other) / (point - other)
    values = free
    if real is not None and len(rows):
        pairs = zip(free, real, strict=True)
        values = tuple(jnp.concatenate([h, r[rows]]) for h, r in pairs)
    return tuple(
        jnp.tensordot(jnp.asarray(basis, dtype), h.astype(dtype), 1) for h in values
    )


def kept(found: Relaxed, predicted: States, free: States) -> States:
    """Complex phases that went astray go back to their prediction, example by example.

    The quadrature of an extrapolated polynomial is the centred rule, so an example for
    which the circle is too large falls back to N = 2. It is of no use for noisy drives:
    the estimated error would be that of the noise.
    """
    moved = norm(minus(predicted, free))
    astray = ~(found.error <= ASTRAY * moved).all(0, keepdims=True)
    return tuple(
        jnp.where(astray.reshape(1, -1, *(1,) * (h.ndim - 2)), p, h)
        for h, p in zip(found.states, predicted, strict=True)
    )
