"""The scale of the noise, sigma: one number, a schedule, or one of these for each node.

(`learned_scale` has a sigma that is learned.)

A sigma too small for the precision in use is an error, not a silent zero gradient.

A value y stands eps |y| apart from the next one: eps of its type, or of the type to which
matrix products round it. Noise of half that size still moves nearly every value, and
rounding acts like more noise; at a quarter of it the staircase swallows the noise, and
the estimate fades to zero. So the smallest safe sigma is eps rms(y) / 2 at each node.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpfree.program import passes
from bpfree.program.tags import Site
from bpfree.program.trace import LossFn, NodeTree, Program, arguments, trace

Number = float | jax.Array | Callable[[jax.Array], jax.Array]
Sigma = Number | Mapping[str, Number]


def scales(sigma: Sigma, step, nodes: tuple[Site, ...]) -> NodeTree:
    """{node: float32 ()} of a number, a schedule, or a mapping from names to them."""
    if not isinstance(sigma, Mapping):
        value = scale_at(sigma, step)
        return {s.name: value for s in nodes}
    names = {s.name for s in nodes}
    if names != set(sigma):
        raise ValueError(
            f"sigma names the nodes {sorted(sigma)}; those to be perturbed are "
            f"{sorted(names)}"
        )
    return {name: scale_at(value, step) for name, value in sigma.items()}


def of_each(fn, sigma: NodeTree) -> NodeTree:
    """{node: fn(its sigma)}. Nodes often share one array; fn is applied to it once."""
    found = {id(value): fn(value) for value in sigma.values()}
    return {name: found[id(value)] for name, value in sigma.items()}


def least_at(sites: Sequence[Site], sigma: NodeTree) -> jax.Array:
    """The least sigma at each site, over its channels, (n,); infinite without noise."""
    none = jnp.float32(jnp.inf)
    given = [sigma.get(site.name, none) for site in sites]
    each = {id(s): s for s in given}
    places = {key: i for i, key in enumerate(each)}
    least = jnp.stack([jnp.min(s) for s in each.values()])
    return least[np.array([places[id(s)] for s in given])]


@jax.jit  # one function in the program for all values of a shape
def scaled(sigma: jax.Array, value: jax.Array) -> jax.Array:
    """sigma * value, with a sigma () or (channels,) that belongs to the last axis."""
    lead = range(value.ndim - sigma.ndim if sigma.ndim else 0)
    return lax.expand_dims(sigma, lead) * value


def scale_at(sigma: Number, step) -> jax.Array:
    """The value () of a number or a schedule at this step; ValueError for an array."""
    value = jnp.asarray(sigma(step) if callable(sigma) else sigma, jnp.float32)
    if value.ndim:
        raise ValueError(f"sigma must be one number, got shape {value.shape}")
    return value


def check_sigma(sigma: Sigma | None) -> None:
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


def check_resolution(sigma: Sigma, program: Program) -> None:
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


# ------------------------------------------------------------ what a precision resolves

_PRECISIONS = {"bfloat16": 2.0**-7, "tensorfloat32": 2.0**-10, "high": 2.0**-10}
_DEFAULT_PRECISION = {"tpu": "bfloat16", "gpu": "tensorfloat32"}


def resolution(dtype) -> float:
    """Relative spacing of the numbers that matrix products tell apart.

    Products of float32 round their factors to TF32 on GPUs and to bfloat16 on TPUs unless
    `jax.default_matmul_precision` says otherwise. 0 for whole numbers.
    """
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    own = float(jnp.finfo(dtype).eps)
    if jnp.finfo(dtype).bits != 32:
        return own
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if precision in (None, "default"):
        precision = _DEFAULT_PRECISION.get(jax.default_backend())
    return max(own, _PRECISIONS.get(precision, own))


def smallest(dtype, size=1.0):
    """The smallest safe sigma for values of this type and size."""
    return 0.5 * resolution(dtype) * size


def smallest_at(name: str, loss_fn: LossFn, params, batch, key) -> float:
    """The smallest safe sigma at a node with these parameters and this batch."""
    program = trace(loss_fn, params, batch, key, [name], loss_axes=2)
    args = arguments(loss_fn, params, batch, key)
    values = passes.cut(program, args)[1]
    return float(smallest(values[name].dtype, rms([values[name]])[0]))


def rms(values: Sequence[jax.Array]) -> jax.Array:
    """Root mean square of each array, (n,).

    Where the sum of the squares overflows, the largest magnitude stands in for it. So the
    result is finite if and only if all entries of the array are.
    """
    found = [_square_and_largest(value) for value in values]
    kind = max((largest.dtype for _, largest in found), key=lambda dtype: dtype.itemsize)
    squares, largest = (
        jnp.stack([x.astype(kind) for x in each]) for each in zip(*found, strict=True)
    )
    root = jnp.sqrt(squares / np.array([value.size for value in values], kind))
    return jnp.where(jnp.isfinite(root), root, largest)


@jax.jit  # one function in the program for all values of a shape
def _square_and_largest(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    value = at_least_float32(value)
    return (value * value).sum(), jnp.abs(value).max()


def sizes_at(sites: Sequence[Site], values: NodeTree) -> jax.Array:
    """Root mean square of the values at each site, (n,); 0 where there are none.

    Sites of the kind "shares" count as having none: a share of a statistic of the batch
    that is not finite makes the statistic itself not finite, which has a site of its own.
    So do whole numbers that are held.
    """
    real = (s for s in sites if jnp.issubdtype(s.dtype, jnp.inexact))
    checked = {s.name for s in real if s.kind != "shares"} & values.keys()
    known = [i for i, site in enumerate(sites) if site.name in checked]
    found = rms([values[sites[i].name] for i in known])
    index = np.full(len(sites), len(known))
    index[known] = np.arange(len(known))
    return jnp.append(found, jnp.zeros(1, found.dtype))[index]


def at_least_float32(x: jax.Array) -> jax.Array:
    """float16 and bfloat16 as float32; wider types as they are."""
    narrow = jnp.finfo(x.dtype).bits < 32
    return x.astype(jnp.float32) if narrow else x
