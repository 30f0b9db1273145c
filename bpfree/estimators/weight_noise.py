"""Noise on the parameters, drawn again wherever it is needed and never stored.

With z_p the noise of parameter p, mean 0 and covariance the identity,

    dense     z = signs (32 to a random word) or normals       |p| random numbers
    rank r    z = A B^T / sqrt(r)                              r (m + n) of them

where A (m, r) and B (n, r) are such noise themselves; for a matrix with more axes, as a
convolution kernel, m is the product of all but the last.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.program import products
from bpfree.program.lowrank import LowRank
from bpfree.program.marking import param_path, param_paths
from bpfree.program.reach import moves_loss
from bpfree.program.trace import check_arrays
from bpfree.sampling import loop
from bpfree.sampling.noise import Plan, draw_arrays, gaussian, named_keys, rademacher


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


def credited_together(layout: loop.Layout, rank, params: dict) -> loop.Layout:
    """The layout of the loop that credits: several chunks of losses at a time.

    To add up a chunk's noise reads and writes the gradient of all parameters once. Many
    samples of factors are one product; they take 1/8 of the parameters' memory at most.
    """
    factored = [jnp.shape(p) for p in params.values()]
    factored = [s for s in factored if rank is not None and _saves(s, rank)]
    factors = sum(rank * (math.prod(s) // s[-1] + s[-1]) for s in factored)
    most = sum(map(math.prod, factored)) // max(1, 8 * factors * layout.chunk)
    chunks = layout.num_draws // (layout.devices * layout.chunk)
    count = max(d for d in range(1, max(1, most) + 1) if chunks % d == 0)
    return layout._replace(chunk=count * layout.chunk)


def check_rank(rank) -> None:
    if rank is not None and not (isinstance(rank, int) and rank > 0):
        raise ValueError(f"rank={rank!r} must be None or a positive whole number")


def moved(traced, args, wanted=None) -> dict[str, jax.Array]:
    """{path: parameter} of those that move the losses and whose gradient is asked for.

    The others would only add variance: their gradient is zero, or nobody reads it.
    `traced` is `to_jaxpr` of the loss function at `args`.
    """
    jaxpr, _, out = traced
    check_arrays(jaxpr)
    leaves, paths = jax.tree.leaves(args[0]), param_paths(args[0])
    moving = moves_loss(jaxpr, jax.tree.structure(out), len(leaves))
    if not any(moving):
        raise ValueError(
            "no parameter moves the losses: they are constant, or made of the batch "
            "alone, or of what stands under a stop_gradient"
        )
    return {
        path: leaf
        for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
        if (wanted is None or wanted[i]) and moving[i]
    }


@jax.named_scope("bpfree.noise")
def draw(plan: Plan, rank: int | None, key, index, params: dict[str, jax.Array]) -> Noise:
    """Noise of draw `index`, a function of (key, index, path) and of nothing else."""
    (keys,) = named_keys(key, jnp.reshape(index, 1), list(params))
    if rank is not None:
        keys = jnp.column_stack([keys, jax.vmap(jax.random.split)(keys)])
    wanted = {}
    for i, (path, p) in enumerate(params.items()):
        *lead, last = jnp.shape(p) or (1,)
        if rank is not None and _saves(jnp.shape(p), rank):
            wanted[path, "left"] = (i, 1), (*lead, rank)
            wanted[path, "right"] = (i, 2), (last, rank)
        else:
            wanted[path, "all"] = (i, 0), jnp.shape(p)
    places, shapes = zip(*wanted.values(), strict=True)
    each = keys.reshape(len(params), -1)[tuple(np.array(places).T)]
    kinds = [(shape, None, jnp.float32) for shape in shapes]
    drawn = draw_arrays(plan, each[None], kinds)
    found = dict(zip(wanted, drawn, strict=True))

    def one(path):
        if (path, "all") in found:
            return found[path, "all"].reshape(jnp.shape(params[path]))
        return _factors(found[path, "left"], found[path, "right"])

    return {path: one(path) for path in params}


@jax.jit  # one function in the program for all parameters of a shape
def _factors(left, right) -> Factors:
    """Of drawn arrays (1, 1, ...)."""
    return Factors(left[0, 0] / math.sqrt(left.shape[-1]), right[0, 0])


def _saves(shape, rank: int) -> bool:
    """Whether factors hold fewer numbers than the array."""
    size = math.prod(shape)
    return len(shape) > 1 and rank * (size // shape[-1] + shape[-1]) < size


def added(params, noise: Noise, scale) -> Any:
    """params + scale * noise; a LowRank where the noise has factors."""

    def one(path, p):
        z = noise.get(param_path(path))
        if z is None:
            return p
        if isinstance(z, Factors):
            left = (scale * z.left).astype(p.dtype)
            return LowRank(jnp.asarray(p), left, z.right.astype(p.dtype))
        return p + (scale * z).astype(jnp.result_type(p))

    return jax.tree_util.tree_map_with_path(one, params)


def moved_by(params, noise: Noise, scale) -> Any:
    """params + scale * noise, as arrays."""
    total = added(params, noise, scale)
    is_sum = lambda x: isinstance(x, LowRank)  # noqa: E731
    return jax.tree.map(lambda x: x.full() if is_sum(x) else x, total, is_leaf=is_sum)


@jax.named_scope("bpfree.credit")
def credit(weights: jax.Array, noise: Noise) -> dict[str, jax.Array]:
    """{path: sum_k weights[k] noise[k]}, for weights (K,) and K samples of noise."""

    def one(z):
        if not isinstance(z, Factors):
            numbers = (([0], [0]), ([], []))
            return products.dot_general(
                weights, z, numbers, precision=lax.Precision.HIGHEST
            )
        weighted = jnp.einsum("k,k...r->k...r", weights, z.left)
        return jnp.einsum(
            "k...r,knr->...n", weighted, z.right, precision=lax.Precision.HIGHEST
        )

    return {path: one(z) for path, z in noise.items()}


def as_gradient(params, found: dict[str, jax.Array]) -> Any:
    """The params-shaped tree of what was found, zero elsewhere."""

    def one(path, p):
        total = found.get(param_path(path))
        return jnp.zeros_like(p) if total is None else total.astype(jnp.result_type(p))

    return jax.tree_util.tree_map_with_path(one, params)
