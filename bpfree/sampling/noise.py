"""Perturbation plans: how noise is drawn.

A plan draws perturbations as a function of (key, draw index, node) and of nothing else:
not of the chunk size, the device count or the order of calls. One draw yields a small
*group* of coupled samples (an antithetic pair, say), so sample k is member k mod G of
draw k // G. Noise has mean 0 and covariance the identity, is made where it is used, and
is never stored.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.program.tags import Site
from bpfree.program.trace import NodeTree, name_hash
from bpfree.sampling import signs
from bpfree.sampling.words import random_words

Draw = Callable[[jax.Array, tuple[int, ...], int | None], jax.Array]


class OfWords(NamedTuple):
    """How noise is made of one array of random words.

    Attributes:
      shape: `(shape, batch_axis) -> shape of the words`.
      noise: `(entries, shape, batch_axis) -> (G, *shape)`, float32.
      entry: `words, dtype -> entries`, each of them alone; it rounds numbers to dtype.
    """

    shape: Callable[[tuple[int, ...], int | None], tuple[int, ...]]
    noise: Draw
    entry: Callable[..., jax.Array] = lambda words, dtype: words

    def draw(self, key: jax.Array, shape: tuple[int, ...], batch_axis: int | None):
        words = jax.random.bits(key, self.shape(shape, batch_axis), jnp.uint32)
        return self.noise(self.entry(words, jnp.float32), shape, batch_axis)


class Plan(NamedTuple):
    """How to perturb a node.

    Attributes:
      group: samples in one draw, G.
      draw: `(key, shape, batch_axis) -> (G, *shape)`, float32.
      score: noise -> minus the derivative of its log density, or None where the noise
        has no density.
      of_words: the same draw, where one array of words makes it: those of all nodes are
        hashed together.
    """

    group: int
    draw: Draw
    score: Callable[[jax.Array], jax.Array] | None
    of_words: OfWords | None = None


def gaussian(share: int = 1) -> Plan:
    """Standard normal noise; `share` samples have magnitudes in common.

    Each sample is `sign * |g|` with its own independent signs. For share > 1 the
    magnitudes |g| are drawn once for `share` samples. Every sample is then still exactly
    normal and independent samples are uncorrelated, so all estimators keep their
    expectation; only the fourth moments couple. It saves (1 - 1/share) of the normals.
    """

    def draw(key, shape, batch_axis):
        magnitude_key, sign_key = jax.random.split(key)
        magnitude = drawn_once(jax.random.normal(magnitude_key, shape, jnp.float32))

        def one(key):
            return packed_signs(key, shape, batch_axis) * magnitude

        return jax.vmap(one)(jax.random.split(sign_key, share))

    if share == 1:
        words = OfWords(lambda shape, _: (1, *shape), _as_drawn, _normals)
        return Plan(1, words.draw, lambda noise: noise, words)
    return Plan(share, draw, score=lambda noise: noise)


def rademacher() -> Plan:
    """Independent signs, 32 to a random word (SPSA directions); they have no density."""
    words = OfWords(signs.packed, lambda *args: signs.unpacked(*args)[None])
    return Plan(1, words.draw, None, words)


def antithetic_plan(plan: Plan) -> Plan:
    """Each sample of `plan` and its negative, for the same example."""

    def both(draw: Draw) -> Draw:
        def pairs(source, shape, batch_axis):
            noise = draw(source, shape, batch_axis)
            return jnp.concatenate([noise, -noise])

        return pairs

    words = plan.of_words and plan.of_words._replace(noise=both(plan.of_words.noise))
    return Plan(2 * plan.group, both(plan.draw), plan.score, words)


def packed_signs(
    key: jax.Array, shape: tuple[int, ...], batch_axis: int | None = None
) -> jax.Array:
    """Random +-1 of `shape`, float32, from one random word per 32 signs.

    Words are packed within an example, and along the last axis if 32 divides it, so that
    any sharded axis unpacks locally; what is small is hashed flat.
    """
    return OfWords(signs.packed, signs.unpacked).draw(key, shape, batch_axis)


def _normals(words: jax.Array, dtype: Any) -> jax.Array:
    """What `jax.random.normal` makes of the same words, in float32, rounded."""
    mantissa = (words >> 9) | jnp.uint32(0x3F800000)
    unit = lax.bitcast_convert_type(mantissa, jnp.float32) - 1  # in [0, 1)
    low = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(low, unit * (np.float32(1) - low) + low)
    return (np.float32(math.sqrt(2)) * lax.erf_inv(uniform)).astype(dtype)


def _as_drawn(normals: jax.Array, *_) -> jax.Array:
    return drawn_once(normals).astype(jnp.float32)


def drawn_once(random: jax.Array) -> jax.Array:
    """Keeps XLA from fusing the generator into every reader, each hashing again."""
    return lax.optimization_barrier(random)


@jax.named_scope("bpfree.noise")
def draw_chunk(
    plan: Plan, key: jax.Array, indices: jax.Array, nodes: tuple[Site, ...]
) -> NodeTree:
    """Noise of a chunk of draws, samples in front: {name: (c * G, *node shape)}.

    Normals for a node of 16 bits are rounded to its dtype, half of the memory to write
    and read; all is float32 for whoever computes with it.
    """
    keys = named_keys(key, indices, [s.name for s in nodes])
    kinds = [(s.shape, s.batch_axis, _rounded_to(s.dtype)) for s in nodes]
    noise = draw_arrays(plan, keys, kinds)
    pairs = zip(nodes, noise, strict=True)
    return {s.name: z.reshape(-1, *z.shape[2:]) for s, z in pairs}


def named_keys(key: jax.Array, indices: jax.Array, names: Sequence[str]) -> jax.Array:
    """`fold_in(fold_in(key, index), name_hash(name))` for each draw and name, (c, n)."""
    hashes = np.array([name_hash(name) for name in names], np.uint32)
    draws = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    fold_all = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold_all, (0, None))(draws, hashes)


def _rounded_to(dtype: Any) -> Any:
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 2
    return jnp.dtype(dtype if narrow else jnp.float32)


def draw_arrays(
    plan: Plan,
    keys: jax.Array,
    kinds: Sequence[tuple[tuple[int, ...], int | None, Any]],
) -> list[jax.Array]:
    """`plan.draw(keys[k, i], *kinds[i][:2])` for each i, (c, G, *shape).

    Args:
      keys: (c, n).
      kinds: n of (shape, batch_axis, dtype that a word's number is rounded to).
    """
    made = plan.of_words
    if made is None:
        return [_each(plan.draw, keys[:, i], *k[:2]) for i, k in enumerate(kinds)]
    found: dict[int, jax.Array] = {}
    for dtype in dict.fromkeys(kind[2] for kind in kinds):
        alike = [i for i, kind in enumerate(kinds) if kind[2] == dtype]
        shapes = [made.shape(*kinds[i][:2]) for i in alike]
        entry = partial(made.entry, dtype=dtype)
        words = random_words(keys[:, np.array(alike)], shapes, entry)
        found |= {
            i: _each(made.noise, w, *kinds[i][:2])
            for i, w in zip(alike, words, strict=True)
        }
    return [found[i] for i in range(len(kinds))]


@partial(jax.jit, static_argnums=(0, 2, 3))  # one function for all arrays of a kind
def _each(draw: Draw, sources, shape: tuple[int, ...], batch_axis: int | None):
    return jax.vmap(lambda source: draw(source, shape, batch_axis))(sources)
