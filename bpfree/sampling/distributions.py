"""Plans beyond signs and independent normals: heavier tails, and coupled normals.

All have mean 0 and variance 1 per entry, so that sigma is a standard deviation for
any noise, and a score with E[s] = 0 and E[s eps] = 1. The coupled ones draw a group of
samples at once; every sample alone is exactly standard normal, so every estimator keeps
its expectation, and only the spread of the mean over the group changes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.sampling.noise import Plan, drawn_once

GROUP = 64  # samples coupled at most: they are drawn, and evaluated, side by side
_DEGREES = 5.0  # of freedom of Student's t
_SOBOL_DIMENSIONS = 21201  # for which SciPy has direction numbers


def laplace() -> Plan:
    """Laplace noise of variance 1 (scale 1/sqrt(2)); its score is sqrt(2) sign(eps)."""

    def draw(key, shape, batch_axis):
        noise = jax.random.laplace(key, (1, *shape), jnp.float32)
        return drawn_once(noise) / math.sqrt(2)

    return Plan(1, draw, score=lambda noise: math.sqrt(2) * jnp.sign(noise))


def student_t() -> Plan:
    """Student's t with 5 degrees of freedom, of variance 1.

    With n = 5 the score is (n + 1) eps / (n - 2 + eps^2). The chi-squared variable is
    made of exponentials and a normal: no rejection, so no loop.
    """

    def draw(key, shape, batch_axis):
        normals, exponentials = jax.random.split(key)
        z = jax.random.normal(normals, (2, 1, *shape), jnp.float32)
        e = jax.random.exponential(exponentials, (2, 1, *shape), jnp.float32)
        chi_squared = 2 * e.sum(0) + z[1] ** 2
        return drawn_once(z[0] * jnp.sqrt((_DEGREES - 2) / chi_squared))

    def score(noise):
        return (_DEGREES + 1) * noise / (_DEGREES - 2 + noise**2)

    return Plan(1, draw, score)


def sobol(size: int) -> Plan:
    """Normals from `size` points of Sobol's sequence, in each example's own scramble.

    The points (SciPy's direction numbers) get a random digital shift per dimension and a
    random order, both of this node and example alone: every point is uniform, the
    examples are independent, and so are the nodes. The inverse normal distribution
    function does the rest.

    Args:
      size: points in a draw, a power of two.

    Raises ValueError when a node has more than 21201 entries per example.
    """

    def draw(key, shape, batch_axis):
        examples, rest = _split(shape, batch_axis)
        points = jnp.asarray(_sobol_points(size, math.prod(rest)))  # (size, entries)

        def one(key):
            shift_key, order_key = jax.random.split(key)
            shift = jax.random.bits(shift_key, points.shape[1:], jnp.uint32)
            return jax.random.permutation(order_key, points) ^ shift[None]

        bits = jax.vmap(one)(jax.random.split(key, examples)) >> 9
        uniform = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)  # exact
        noise = drawn_once(jax.scipy.special.ndtri(uniform))
        return _join(jnp.moveaxis(noise, 1, 0), rest, batch_axis)

    return Plan(size, draw, score=lambda noise: noise)


def orthogonal(size: int) -> Plan:
    """Normals whose directions are orthogonal to each other, within each example.

    A draw of `size` samples is cut into sets of at most d, the entries per example. In a
    set the directions are those of a random orthonormal frame (the Q of normals), and
    the lengths those of the normals themselves: each sample is exactly normal.
    """

    def draw(key, shape, batch_axis):
        examples, rest = _split(shape, batch_axis)
        width = math.prod(rest)
        count = min(size, width)
        sets = -(-size // count)
        normals = jax.random.normal(key, (examples, sets, width, count), jnp.float32)
        q, r = jnp.linalg.qr(normals)
        sign = jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))  # makes Q uniform
        length = jnp.linalg.norm(normals, axis=-2)  # independent of all directions
        noise = q * (sign * length)[..., None, :]
        noise = noise.swapaxes(-2, -1).reshape(examples, sets * count, width)[:, :size]
        return _join(drawn_once(jnp.moveaxis(noise, 1, 0)), rest, batch_axis)

    return Plan(size, draw, score=lambda noise: noise)


def group_of(what: str, draws: int) -> int:
    """The largest power of two that divides `draws`, at most GROUP.

    Raises ValueError where it is 1, and nothing would be coupled.
    """
    size = math.gcd(draws, GROUP)
    if size < 2:
        raise ValueError(
            f"noise={what!r} couples samples in groups of a power of two; {draws} "
            "independent samples have none. Choose num_samples a multiple of 64, or a "
            "smaller power of two (twice that with antithetic=True)."
        )
    return size


@functools.lru_cache(maxsize=16)
def _sobol_points(size: int, dimensions: int) -> np.ndarray:
    """The first points of the unscrambled sequence as (size, dimensions) uint32."""
    from scipy.stats import qmc  # half a second

    if dimensions > _SOBOL_DIMENSIONS:
        raise ValueError(
            f"noise='sobol' has direction numbers for {_SOBOL_DIMENSIONS} dimensions, "
            f"and a node has {dimensions} entries per example. Perturb other nodes "
            "(nodes=), or use noise='gaussian': beyond some 16 entries Sobol's points "
            "gain nothing."
        )
    points = qmc.Sobol(dimensions, scramble=False, bits=32).random(size)
    return np.asarray(points * 2.0**32, np.uint64).astype(np.uint32)


def _split(shape, batch_axis) -> tuple[int, list[int]]:
    """(examples, shape of one of them); a value shared by the batch is one example."""
    if batch_axis is None:
        return 1, list(shape)
    return shape[batch_axis], [n for i, n in enumerate(shape) if i != batch_axis]


def _join(noise, rest, batch_axis) -> jax.Array:
    """(samples, examples, entries) -> (samples, *shape)."""
    noise = noise.reshape(*noise.shape[:2], *rest)
    return noise[:, 0] if batch_axis is None else jnp.moveaxis(noise, 1, 1 + batch_axis)
