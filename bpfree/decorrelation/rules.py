r"""Rules that move a decorrelating matrix R by the statistics of x = R z.

With S the second moment of x over the rows seen, v its diagonal, C = S - diag v:

    copi             R <- R - eta C R
    dbp              R <- R - eta [(1 - kappa) C + kappa diag(v - 1)] R
    dbp, normalized  R <- R - eta [(1 - kappa) / (d - 1) C + 2 kappa diag(v - 1)] R
    gain             R <- g (I - eta S) R,      g = mean |z| / |x|

The moments are about zero. With `preserve=False` the weights are A = W R, as if R were
a layer in front of W: A moves with R, and so does the function. With `preserve=True` a
move of R changes later updates and nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bpfree.decorrelation import moments
from bpfree.decorrelation.moments import product
from bpfree.decorrelation.rule import Rule, by_matrix, by_transpose, identities


class Moving(NamedTuple):
    """State of a rule that moves.

    Attributes:
      matrix: R (G, d, d).
      rate: eta of the last move, (G,).
      loss: mean squared correlation of x before it, ().

    Example:
        >>> state = bpfree.decorrelation.dbp().init(1, 3, jnp.float32)
        >>> state.matrix[0].tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    matrix: jax.Array
    rate: jax.Array
    loss: jax.Array


def dbp(
    kappa: float = 0.01,
    *,
    normalized: bool = False,
    rate: float | None = None,
    preserve: bool = False,
) -> Rule:
    """The rule of decorrelated backpropagation, see the top of this file.

    Dalm, Offergeld, Ahmad, van Gerven, arXiv:2405.02385 (the released code has
    R diag(v - 1) in place of diag(v - 1) R, which diverges for some data).

    Args:
      kappa: 0: variances are left alone; in (0, 1]: drawn to one.
      normalized: the second form, whose rates do not depend on d.
      rate: eta. None: 0.25 / lambda_max of the bracket, at most 0.5 / max(v, 1); a given
        one is lowered to 0.5 / lambda_max where it is larger. It never rises again: near
        the end lambda_max is small and the statistics are mostly noise. No move is larger
        than half of R, in norm.
      preserve: leave the function as it is when R moves (in no paper).

    Raises ValueError: kappa outside 0 .. 1, a rate that is not positive.

    Example:
        >>> tx = bpfree.decorrelate(
        ...     optax.adam(1e-3),
        ...     loss_fn,
        ...     example_batch=batch,
        ...     rule=bpfree.decorrelation.dbp(),
        ... )
        >>> state = tx.init(params)
        >>> state.layers["w1"].matrix.shape
        (1, 3, 3)
    """
    if not 0 <= kappa <= 1:
        raise ValueError(f"kappa={kappa!r} must lie in 0 .. 1")

    def bracket(x):
        d = x.shape[-1]
        off = (1 - kappa) / max(d - 1, 1) if normalized else 1 - kappa
        on = 2 * kappa if normalized else kappa
        return decorrelating(x, off, on)

    return _moving(bracket, rate, preserve)


def copi(*, rate: float | None = None, preserve: bool = False) -> Rule:
    r"""Decorrelation alone: `dbp` with kappa = 0.

    .. math:: R \leftarrow R - \eta\, C R

    The determinant of R stays, so that variances fall towards the geometric mean of the
    eigenvalues of the input's second moment.

    Args:
      rate: eta; None: found at each move, as `bpfree.decorrelation.dbp` says.
      preserve: leave the function as it is when R moves.

    Returns:
      A rule, for `bpfree.decorrelate`.

    Raises:
      ValueError: a rate that is not positive.

    Source: Ahmad, Schrader and van Gerven, "Constrained parameter inference as a
    principle for learning", 2023.

    Example:
        >>> tx = bpfree.decorrelate(
        ...     optax.adam(1e-3),
        ...     loss_fn,
        ...     example_batch=batch,
        ...     rule=bpfree.decorrelation.copi(),
        ... )
        >>> state = tx.init(params)
        >>> state.layers["w1"].matrix.shape
        (1, 3, 3)
    """
    return dbp(0.0, rate=rate, preserve=preserve)


def gain(*, rate: float | None = None, preserve: bool = False) -> Rule:
    r"""Whitening that keeps the mean norm of the inputs.

    .. math:: R \leftarrow g\, (I - \eta\, S) R, \qquad g = \text{mean}\ |z| / |x|

    Unlike in the paper, the inputs' mean is not subtracted.

    Args:
      rate: eta; None: found at each move, as `bpfree.decorrelation.dbp` says.
      preserve: leave the function as it is when R moves.

    Returns:
      A rule, for `bpfree.decorrelate`.

    Raises:
      ValueError: a rate that is not positive.

    Source: Ahmad 2024, arXiv:2407.10780.

    Example:
        >>> tx = bpfree.decorrelate(
        ...     optax.adam(1e-3),
        ...     loss_fn,
        ...     example_batch=batch,
        ...     rule=bpfree.decorrelation.gain(),
        ... )
        >>> state = tx.init(params)
        >>> state.layers["w1"].matrix.shape
        (1, 3, 3)
    """
    return _moving(lambda x: decorrelating(x, 1.0, 0.0, whole=True), rate, preserve, True)


# ------------------------------------------------------------------------- one move


class Bracket(NamedTuple):
    """The symmetric matrix M in R <- R - eta M R, as what it does.

    Attributes:
      times: m (G, d, k) -> M m.
      weight: the largest weight of a part of M; bounds rates near the target.
    """

    times: Callable[[jax.Array], jax.Array]
    weight: float


def decorrelating(x: jax.Array, off: float, on: float, whole: bool = False) -> Bracket:
    """off C + on diag(v - 1), or off S if `whole`, of rows x (G, n, d)."""
    v = moments.variances(x)
    diagonal = jnp.zeros_like(v) if whole else on * (v - 1) - off * v

    def times(m):
        return off * moments.times(x, m) + diagonal[..., None] * m

    return Bracket(times, max(off, on))


def step(matrix: jax.Array, bracket: Bracket, rate: jax.Array) -> jax.Array:
    """R - eta M R, with eta (G,) and no guard."""
    return matrix - rate[:, None, None] * bracket.times(matrix)


def safe_rate(bracket: Bracket, x: jax.Array, rate: float | None) -> jax.Array:
    """eta (G,) of a move; see `dbp`."""
    top = moments.largest_eigenvalue(
        lambda u: bracket.times(u[..., None])[..., 0], x.shape[::2], x.dtype
    )
    top = jnp.maximum(top, jnp.finfo(x.dtype).tiny)
    if rate is not None:
        return jnp.minimum(jnp.asarray(rate, x.dtype), 0.5 / top)
    variance = jnp.maximum(moments.variances(x).max(1), 1)
    return jnp.minimum(0.25 / top, 0.5 / (bracket.weight * variance))


def _moving(make: Callable, rate: float | None, preserve: bool, scaled=False) -> Rule:
    if rate is not None and not rate > 0:
        raise ValueError(f"rate={rate!r} must be positive, or None")

    def init(blocks: int, d: int, dtype) -> Moving:
        still, loss = jnp.zeros((blocks,), dtype), jnp.zeros((), dtype)
        return Moving(identities(blocks, d, dtype), still, loss)

    def move(state: Moving, rows: jax.Array) -> Moving:
        x = product(rows, state.matrix.mT)
        bracket = make(x)
        eta = safe_rate(bracket, x, rate)
        eta = jnp.where(state.rate > 0, jnp.minimum(eta, state.rate), eta)
        change = step(state.matrix, bracket, eta) - state.matrix
        size, limit = _norm(change), 0.5 * _norm(state.matrix)
        change = change * jnp.minimum(1, limit / jnp.maximum(size, limit))
        moved = state.matrix + change
        if scaled:
            moved = moved * _gain(rows, x)[:, None, None]
        return Moving(moved, eta, moments.correlation(x))

    return Rule(init, move, by_transpose, by_matrix, folded=not preserve)


def _norm(matrix: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(matrix**2, (1, 2), keepdims=True))


def _gain(rows: jax.Array, x: jax.Array) -> jax.Array:
    """mean |z| / |x|, (G,); 1 where there is nothing to compare."""
    before, after = (jnp.linalg.norm(a, axis=2) for a in (rows, x))
    live = (before > 0) & (after > 0)
    ratios = jnp.where(live, before / jnp.where(live, after, 1), 0).sum(1)
    count = live.sum(1).astype(rows.dtype)
    return jnp.where(count > 0, ratios / jnp.maximum(count, 1), 1)
