"""A sigma too small for the precision in use is an error, not a silent zero gradient.

A value y stands eps |y| apart from the next one: eps of its type, or of the type to which
matrix products round it. Noise of half that size still moves nearly every value, and
rounding acts like more noise; at a quarter of it the staircase swallows the noise, and
the estimate fades to zero. So the smallest safe sigma is eps rms(y) / 2 at each node.
"""

import jax
import jax.numpy as jnp

from bpfree import passes
from bpfree import program as _program
from bpfree._jaxpr import Site

_PRECISIONS = {"bfloat16": 2.0**-7, "tensorfloat32": 2.0**-10, "high": 2.0**-10}
_DEFAULT_PRECISION = {"tpu": "bfloat16", "gpu": "tensorfloat32"}


def resolution(dtype) -> float:
    """Relative spacing of the numbers that matrix products tell apart.

    Products of float32 round their factors to TF32 on GPUs and to bfloat16 on TPUs unless
    `jax.default_matmul_precision` says otherwise.
    """
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


def too_small(site: Site, sigma: jax.Array, size: jax.Array) -> jax.Array:
    """Whether noise of scale sigma is lost in values of rms `size`; bool ()."""
    return sigma.min().astype(size.dtype) < smallest(site.dtype, size)


def smallest_at(name: str, loss_fn: _program.LossFn, params, batch, key) -> float:
    """The smallest safe sigma at a node with these parameters and this batch."""
    program = _program.trace(loss_fn, params, batch, key, [name], loss_axes=2)
    args = _program.arguments(loss_fn, params, batch, key)
    values = passes.cut(program, args)[1]
    return float(smallest(values[name].dtype, rms(values[name])))


def rms(value: jax.Array) -> jax.Array:
    """Root mean square, (); not finite just where an entry is not."""
    value = at_least_float32(value)
    largest = jnp.abs(value).max()  # taken out, so that no square overflows
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(jnp.mean((value / unit) ** 2))


def at_least_float32(x: jax.Array) -> jax.Array:
    narrow = jnp.finfo(x.dtype).bits < 32
    return x.astype(jnp.float32) if narrow else x
