"""What the numbers of a step say went wrong: one code, checked on the device."""

from types import MappingProxyType

import jax.numpy as jnp
import numpy as np

from bpfree.estimators import estimate
from bpfree.sampling.scale import least_at, rms, smallest


def find_fault(program, sizes, sigma, clean=None, changes=MappingProxyType({})):
    """int32: `name_code` of the first node that is not finite, or another code.

    Args:
      sizes: rms of the values at each site, (n,); 0 where nothing is to be checked.
      sigma: {node: () or (channels,)}, {} if nothing is injected.
      clean: losses of the clean pass. changes: mean squares of what noise adds to them.
    """
    sites = program.sites
    places = np.arange(len(sites), dtype=np.int32)
    codes = jnp.asarray([*(estimate.name_code(s.name) for s in sites), 0], jnp.int32)

    def first(bad):
        return jnp.where(bad, places, len(sites)).min()

    scale = least_at(sites, sigma)
    safe = np.array([smallest(s.dtype) for s in sites], sizes.dtype) * sizes
    small, broken = first(scale.astype(sizes.dtype) < safe), first(~jnp.isfinite(sizes))
    code = jnp.int32(estimate.NO_FAULT)
    if changes:
        squares = jnp.stack(list(changes.values()))
        lost = is_lost(squares, clean, scale.min()).any()
        code = jnp.where(lost, estimate.LOST_LOSS, code)
    code = jnp.where(small < len(sites), estimate.SMALL_SIGMA - codes[small], code)
    code = jnp.where(broken < len(sites), codes[broken], code)
    return jnp.where((scale > 0).all(), code, estimate.BAD_SIGMA).astype(jnp.int32)


def is_lost(squares, losses, sigma):
    """Whether rounding hides what noise of size sigma changes in these losses.

    `squares` are mean squares of the changes: less than the spacing of numbers of the
    losses' size, or 0 where a slope of 1 would be hidden. Otherwise a loss that nothing
    changes (a step, a hinge) is no fault.
    """
    change = jnp.sqrt(squares)
    eps = float(jnp.finfo(losses.dtype).eps)
    spacing = (eps * rms([losses])[0]).astype(change.dtype)
    hidden = spacing > jnp.asarray(sigma, change.dtype)
    return jnp.where(change > 0, change < spacing, hidden)
