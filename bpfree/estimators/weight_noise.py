"""Noise on the parameters, drawn again wherever it is needed and never stored.

With z_p the noise of parameter p, mean 0 and covariance the identity,

    dense     z = signs (32 to a random word) or normals       |p| random numbers
    rank r    z = A B^T / sqrt(r)                              r (m + n) of them

where A (m, r) and B (n, r) are such noise themselves; for a matrix with more axes, as a
convolution kernel, m is the product of all but the last.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.program.blocks import moves_loss
from bpfree.program.lowrank import LowRank
from bpfree.program.marking import param_paths
from bpfree.program.trace import name_hash, to_jaxpr
from bpfree.sampling import loop
from bpfree.sampling.noise import Plan, gaussian, rademacher


class Factors(NamedTuple):
    """The matrix left right^T: left (*lead, r), right (n, r)."""

    left: jax.Array
    right: jax.Array


Noise = dict[str, jax.Array | Factors]
"""{path of a parameter: its noise}."""

PLANS = {"rademacher": rademacher(), "gaussian": gaussian()}


def make_layout(plan, rank, num_samples, chunk_size, sharding) -> loop.Layout:
    """`loop.make_layout`; by default one draw at a time, 8 of factors."""
    default = plan.group * (1 if rank is None else 8)
    size = default if chunk_size is None else chunk_size
    return loop.make_layout(plan, num_samples, size, sharding)


def check_rank(rank) -> None:
    if rank is not None and not (isinstance(rank, int) and rank > 0):
        raise ValueError(f"rank={rank!r} must be None or a positive whole number")


def moved(loss_fn, args, wanted=None) -> dict[str, jax.Array]:
    """{path: parameter} of those that move the losses and whose gradient is asked for.

    The others would only add variance: their gradient is zero, or nobody reads it.
    """
    jaxpr, _, out = to_jaxpr(loss_fn, args)
    leaves, paths = jax.tree.leaves(args[0]), param_paths(args[0])
    moving = moves_loss(jaxpr, jax.tree.structure(out), len(leaves))
    return {
        path: leaf
        for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
        if (wanted is None or wanted[i]) and moving[i]
    }


def draw(plan: Plan, rank: int | None, key, index, params: dict[str, jax.Array]) -> Noise:
    """Noise of draw `index`, a function of (key, index, path) and of nothing else."""

    def drawn(key, *shape):
        return plan.draw(key, shape, None)[0]

    def one(shape, key):
        if rank is None or not _saves(shape, rank):
            return drawn(key, *shape)
        keys = jax.random.split(key)
        left = drawn(keys[0], *shape[:-1], rank) / math.sqrt(rank)
        return Factors(left, drawn(keys[1], shape[-1], rank))

    def alike(keys, shape):
        return jax.vmap(partial(one, shape))(keys)

    shapes = {path: jnp.shape(p) for path, p in params.items()}
    hashes = [name_hash(path) for path in params]
    return draw_alike(alike, jax.random.fold_in(key, index), shapes, hashes)


def draw_alike(
    draw, key: jax.Array, kinds: Mapping[str, Hashable], hashes: Sequence[int]
) -> dict[str, Any]:
    """{name: what `draw` makes of its key}; those of one kind are drawn together.

    A model repeats its blocks, so that one program of random numbers serves many names.
    A key depends on the name alone, and the numbers on the key.

    Args:
      draw: `(keys (n,), kind) -> tree of (n, ...)`.
      kinds: {name: what the draw needs to know of it, the shape for one}.
      hashes: of the names.
    """
    words = np.array(hashes, np.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, words)
    found = {}
    for kind in dict.fromkeys(kinds.values()):
        mine = [name for name in kinds if kinds[name] == kind]
        places = [i for i, name in enumerate(kinds) if kinds[name] == kind]
        drawn = draw(keys[np.array(places)], kind)
        for i, name in enumerate(mine):
            found[name] = jax.tree.map(lambda z, i=i: z[i], drawn)
    return {name: found[name] for name in kinds}


def _saves(shape, rank: int) -> bool:
    """Whether factors hold fewer numbers than the array."""
    size = math.prod(shape)
    return len(shape) > 1 and rank * (size // shape[-1] + shape[-1]) < size


def added(params, noise: Noise, scale) -> Any:
    """params + scale * noise; a LowRank where the noise has factors."""

    def one(path, p):
        if path not in noise:
            return p
        z = noise[path]
        if isinstance(z, Factors):
            left = (scale * z.left).astype(p.dtype)
            return LowRank(jnp.asarray(p), left, z.right.astype(p.dtype))
        return p + (scale * z).astype(jnp.result_type(p))

    leaves = map(one, param_paths(params), jax.tree.leaves(params))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def credit(weights: jax.Array, noise: Noise) -> dict[str, jax.Array]:
    """{path: sum_k weights[k] noise[k]}, for weights (K,) and K samples of noise."""

    def one(z):
        if not isinstance(z, Factors):
            return jnp.tensordot(weights, z, 1, precision=lax.Precision.HIGHEST)
        weighted = jnp.einsum("k,k...r->k...r", weights, z.left)
        return jnp.einsum(
            "k...r,knr->...n", weighted, z.right, precision=lax.Precision.HIGHEST
        )

    return {path: one(z) for path, z in noise.items()}


def as_gradient(params, found: dict[str, jax.Array]) -> Any:
    """The params-shaped tree of what was found, zero elsewhere."""

    def one(path, p):
        kind = jnp.result_type(p)
        return found[path].astype(kind) if path in found else jnp.zeros_like(p)

    leaves = map(one, param_paths(params), jax.tree.leaves(params))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
