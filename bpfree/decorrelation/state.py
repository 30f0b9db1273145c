"""The state of `decorrelate`, and how it notices that others changed a kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.decorrelation.inputs import leaves
from bpfree.decorrelation.layout import Layout
from bpfree.decorrelation.moments import product


class DecorrelationState(NamedTuple):
    """State of `decorrelate`.

    Attributes:
      count: updates done, int32 ().
      inner: state of the inner optimiser.
      layers: {path of a kernel: state of its rule}; `.matrix` is R (G, d, d).
      weights: {path: W}, shaped like the kernel; {} for rules that are not folded.
      marks: {path: A v (G, O)} for a fixed vector v: how A was left; {} likewise.
      edited: the first step that found a kernel changed by others, int32 (), or -1.

    Example:
        >>> tx = bpfree.decorrelate(optax.adam(1e-3), loss_fn, example_batch=batch)
        >>> state = tx.init(params)
        >>> list(state.layers), int(state.edited)
        (['w1', 'w2'], -1)
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name; shadows tuple.count
    inner: Any
    layers: dict[str, Any]
    weights: dict[str, jax.Array]
    marks: dict[str, jax.Array]
    edited: jax.Array

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """{"decorrelation/<path>": mean squared correlation of the layer's inputs, as
        the rule leaves them, at its last move}."""
        return {
            f"decorrelation/{p}": s.loss.astype(jnp.float32)
            for p, s in self.layers.items()
        }

    def fault_message(self) -> str | None:
        """What went wrong, in words, or None; for `bpfree.fault_message`."""
        if (step := int(self.edited)) < 0:
            return None
        return (
            f"step {step}: a decorrelated kernel is not as `decorrelate` left it, and "
            "its update has undone the change. Kernels are W R, and W is in the "
            "optimiser's state: put `decorrelate` last in the chain, make a new state "
            "with init(params) after changing parameters, or take a rule with "
            "preserve=True."
        )


def precise(leaf) -> Any:
    """R and W are float32 at least: their changes are lost in less."""
    dtype = jnp.result_type(leaf)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def mark(matrices: jax.Array) -> jax.Array:
    """A v (G, O) of matrices A (G, O, d), for one fixed normal vector v: a checksum."""
    probe = jax.random.normal(jax.random.key(3), matrices.shape[-1:], precise(matrices))
    return product(matrices.astype(probe.dtype), probe[:, None])[..., 0]


def first_edit(state: DecorrelationState, params, found: dict[str, Layout]) -> jax.Array:
    """`state.edited`, or this step if a kernel is not as it was left."""
    kernels = leaves(params)
    changed = jnp.zeros((), bool)
    for path, left in state.marks.items():
        matrices = found[path].matrices(kernels[path])
        eps = float(jnp.finfo(matrices.dtype).eps)
        size = jnp.linalg.norm(matrices.astype(left.dtype), axis=2)
        bound = 64 * eps * (size + jnp.abs(left)) * matrices.shape[2] ** 0.5
        changed |= jnp.any(jnp.abs(mark(matrices) - left) > bound)
    return jnp.where((state.edited < 0) & changed, state.count, state.edited)
