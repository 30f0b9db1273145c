r"""Rules that condition by the second moment S of the inputs itself.

S is a moving average over updates of the statistics, lambda = damping tr(S) / d:

    foof     the inner optimiser sees  g (S + lambda I)^{-1}
    whiten   it works on W in A = W P,  P = (S + lambda I)^{-1/2}: it sees g P, and its
             update u changes A by u P. The function does not move when P does.

Before the first statistics both are the inner optimiser itself.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree.choices import check_choice
from bpfree.decorrelation import moments
from bpfree.decorrelation.moments import product
from bpfree.decorrelation.rule import Rule, by_matrix, by_transpose, identities

Method = Literal["eigh", "newton_schulz"]


class Direct(NamedTuple):
    """State of a direct rule.

    Attributes:
      matrix: what conditions, (G, d, d).
      moment: moving average of the second moment, not yet divided by `weight`.
      weight: 1 - decay^updates, ().
      loss: mean squared correlation of the inputs that the last update saw, ().

    Example:
        >>> state = bpfree.decorrelation.foof().init(1, 3, jnp.float32)
        >>> float(state.weight)  # no statistics yet
        0.0
    """

    matrix: jax.Array
    moment: jax.Array
    weight: jax.Array
    loss: jax.Array


def foof(*, damping: float = 0.1, decay: float = 0.9) -> Rule:
    """Gradients times (S + lambda I)^{-1}: the input side of K-FAC. Benzing 2022.

    Args:
      damping: lambda in units of the mean eigenvalue of S.
      decay: of the moving average, at each update of the statistics.

    Raises ValueError: damping not positive, decay outside 0 .. 1.

    Example:
        >>> tx = bpfree.decorrelate(
        ...     optax.adam(1e-3),
        ...     loss_fn,
        ...     example_batch=batch,
        ...     rule=bpfree.decorrelation.foof(),
        ... )
        >>> state = tx.init(params)
        >>> state.layers["w1"].matrix.shape
        (1, 3, 3)
    """
    _check(damping, decay)
    return _direct(_inverse, by_matrix, lambda state, u: u, damping, decay)


def whiten(*, damping: float = 0.1, decay: float = 0.9, method: Method = "eigh") -> Rule:
    r"""The inner optimiser works on weights of whitened inputs.

    .. math:: A = W P, \qquad P = (S + \lambda I)^{-1/2}

    It sees the gradient times P, and its update u changes A by u P.

    Args:
      damping: lambda in units of the mean eigenvalue of S.
      decay: of the moving average, at each update of the statistics.
      method: how the root is found. "eigh" is exact; "newton_schulz" needs products only,
        which suits accelerators.

    Returns:
      A rule, for `bpfree.decorrelate`.

    Raises:
      ValueError: damping not positive, decay outside 0 .. 1, or an unknown method.

    Example:
        >>> tx = bpfree.decorrelate(
        ...     optax.adam(1e-3),
        ...     loss_fn,
        ...     example_batch=batch,
        ...     rule=bpfree.decorrelation.whiten(),
        ... )
        >>> state = tx.init(params)
        >>> state.layers["w1"].matrix.shape
        (1, 3, 3)
    """
    _check(damping, decay)
    roots = {"eigh": _eigh, "newton_schulz": newton_schulz}
    check_choice("method", method, Method)
    return _direct(roots[method], by_transpose, by_matrix, damping, decay)


def _check(damping: float, decay: float) -> None:
    if not damping > 0:
        raise ValueError(f"damping={damping!r} must be positive")
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay!r} must lie in 0 .. 1")


def _direct(invert, gradient, update, damping: float, decay: float) -> Rule:
    def init(blocks: int, d: int, dtype) -> Direct:
        eye = identities(blocks, d, dtype)
        zero = jnp.zeros((), dtype)
        return Direct(eye, jnp.zeros_like(eye), zero, zero)

    def move(state: Direct, rows: jax.Array) -> Direct:
        moment = decay * state.moment + (1 - decay) * moments.second_moment(rows)
        weight = decay * state.weight + (1 - decay)
        matrix = invert(damped(moment / weight, damping))
        return Direct(matrix, moment, weight, moments.correlation(rows))

    return Rule(init, move, gradient, update, folded=False)


def damped(moment: jax.Array, damping: float) -> jax.Array:
    """S + lambda I; the identity where S is zero."""
    d = moment.shape[-1]
    mean = jnp.trace(moment, axis1=-2, axis2=-1) / d
    ridge = jnp.where(mean > 0, damping * mean, 1)
    return moment + ridge[:, None, None] * jnp.eye(d, dtype=moment.dtype)[None]


# On CPU, LAPACK of a stack of matrices forks inside XLA's thread pool and waits: two such
# calls on two cores wait for ever (jaxlib 0.10.2). So blocks go one after the other. Set
# OPENBLAS_NUM_THREADS=1: OpenBLAS's threads spin while XLA's run, and cost more.


def _eigh(moment: jax.Array) -> jax.Array:
    def root(m):
        values, vectors = jnp.linalg.eigh(m)
        return product(vectors / jnp.sqrt(values)[None], vectors.T)

    return lax.map(root, moment)


def _inverse(moment: jax.Array) -> jax.Array:
    """S^{-1} = L^{-T} L^{-1} for S = L L^T."""

    def inverse(m):
        factor = jax.scipy.linalg.cholesky(m, lower=True)
        eye = jnp.eye(len(m), dtype=m.dtype)
        root = lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
        return product(root.T, root)

    return lax.map(inverse, moment)


def newton_schulz(moment: jax.Array, steps: int = 14) -> jax.Array:
    """S^{-1/2} of positive definite S by the coupled iteration

    T = (3 I - Z Y) / 2,  Y <- Y T,  Z <- T Z,  from Y = S / |S|_F, Z = I.
    """
    size = jnp.sqrt(jnp.sum(moment**2, (1, 2), keepdims=True))
    eye = jnp.broadcast_to(jnp.eye(moment.shape[-1], dtype=moment.dtype), moment.shape)

    def one(carry, _):
        y, z = carry
        t = 1.5 * eye - 0.5 * product(z, y)
        return (product(y, t), product(t, z)), None

    (_, z), _ = lax.scan(one, (moment / size, eye), length=steps)
    return z / jnp.sqrt(size)
