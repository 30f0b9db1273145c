"""Alignment, variance and bias of an estimator, against the gradient of backprop."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpfree.diagnostics.alignment import FEWEST, OVERALL, Alignment, Report
from bpfree.diagnostics.cost import cost
from bpfree.estimators.base import EstimatorState, EstimatorTransformation
from bpfree.estimators.objective import is_energy, mean_loss, split
from bpfree.program.blocks import check_blocks
from bpfree.program.marking import param_paths
from bpfree.program.trace import arguments, takes_key, trace
from bpfree.sampling.seeds import as_key


def measure(
    estimator: EstimatorTransformation,
    params: Any,
    batch: Any,
    *,
    repeats: int = 32,
    seed: int | jax.Array = 0,
    state: EstimatorState | None = None,
    truth: Any = None,
) -> Report:
    """Compare independent estimates of one gradient with the truth.

    Args:
      estimator: any bpfree estimator, not a chain.
      params, batch: the arguments of its loss function.
      repeats: number of estimates, each with new noise; at least 2, and at least 4 for an
        error of the bias. They run one after another; means of 16 parts of them are kept.
      seed: int or typed PRNG key of the noise.
      state: the estimator's state in training, for estimators that learn; a fresh one by
        default. Nothing is learned here.
      truth: params-shaped gradient to compare with. By default that of backprop on the
        estimator's loss function, averaged over the same keys where the loss takes one.

    Returns:
      A `Report`; printed, it is a table with a row for each node.

    Raises:
      ValueError: fewer than two repeats, or a transformation that is no estimator.
      TypeError: an estimator of an energy.

    Example:
        >>> tx = bpfree.node_perturbation(loss_fn, num_samples=4)
        >>> report = bpfree.diagnostics.measure(tx, params, batch, repeats=8)
        >>> report.overall.bias_in_words()[:28]
        'not distinguishable from 0 ('
    """
    if isinstance(estimator, EstimatorTransformation) and state is None:
        state = estimator.init(params)
    meter = make_meter(estimator, params, batch, repeats=repeats)
    return meter(params, batch, seed=seed, state=state, truth=truth)


def make_meter(
    estimator: EstimatorTransformation, params: Any, batch: Any, *, repeats: int = 32
) -> Callable[..., Report]:
    """`measure`, compiled once, to be called during training.

    Args:
      estimator, params, batch, repeats: as in `bpfree.diagnostics.measure`; shapes of
        params and batch are enough.

    Returns:
      `(params, batch, *, seed, state, truth=None) -> Report`.

    Raises:
      ValueError, TypeError: as `bpfree.diagnostics.measure`.

    Example:
        >>> tx = bpfree.node_perturbation(loss_fn, num_samples=4)
        >>> meter = bpfree.diagnostics.make_meter(tx, params, batch, repeats=4)
        >>> state = tx.init(params)
        >>> [meter(params, batch, seed=seed, state=state).repeats for seed in (0, 1)]
        [4, 4]
    """
    if not isinstance(estimator, EstimatorTransformation):
        raise ValueError("measure needs a bpfree estimator, not a chain or a wrapper")
    if is_energy(estimator.loss_fn):
        raise TypeError(
            "measure compares with backprop through a loss function, and got an energy; "
            "compare with the gradient of bpfree.recurrent_backprop(energy)"
        )
    if repeats < 2:
        raise ValueError(f"repeats={repeats} must be at least 2, to know a spread")
    groups = _groups(estimator.loss_fn, params, batch)
    spent = cost(estimator, params, batch)
    run = jax.jit(_inner_products(estimator, repeats))

    def meter(params, batch, *, seed, state, truth=None) -> Report:
        key = as_key(seed)
        inner = jax.device_get(run(key, state, params, batch, truth))
        found = {name: _alignment(inner, members) for name, members in groups.items()}
        return Report(found, spent, repeats)

    return meter


class _Products(NamedTuple):
    """Inner products of the estimates e_r, the means m_i of parts of them, and g."""

    along: jax.Array  # <e_r, g>, (repeats, leaves)
    squares: jax.Array  # |e_r|^2, (repeats, leaves)
    means_along: jax.Array  # <m_i, g>, (parts, leaves)
    means: jax.Array  # <m_i, m_j>, (parts, parts, leaves)
    norm: jax.Array  # |g|^2, (leaves,)


_PARTS = 16  # means of so many parts of the estimates are kept, at most


def _inner_products(estimator, repeats):
    random = takes_key(estimator.loss_fn)

    def run(key, state, params, batch, truth) -> _Products:
        def exact(key):
            _, args = split(estimator.loss_fn, key, params, batch)  # as estimators do

            mean = mean_loss(estimator.loss_fn, args)
            return jax.grad(mean, has_aux=True)(params)[0]

        def estimate(key):
            return estimator.estimator.estimate(key, params, batch, state).gradient

        def means(make, keys, parts, look=lambda gradient: ()):
            def add(totals, at):
                index, key = at
                gradient = _as_float32(make(key))
                add_to = lambda t, g: t.at[index % parts].add(g)  # noqa: E731
                return jax.tree.map(add_to, totals, gradient), look(gradient)

            zeros = lambda p: jnp.zeros((parts, *p.shape), jnp.float32)  # noqa: E731
            totals = jax.tree.map(zeros, params)
            totals, seen = jax.lax.scan(add, totals, (jnp.arange(len(keys)), keys))
            sizes = jnp.bincount(jnp.arange(len(keys)) % parts, length=parts)
            divide = jax.vmap(lambda total, n: total / n.astype(jnp.float32))
            return jax.tree.map(lambda t: divide(t, sizes), totals), seen

        keys = jax.random.split(key, repeats)
        if truth is None:
            truth, _ = means(exact, keys if random else keys[:1], 1)
            truth = jax.tree.map(lambda m: m[0], truth)
        g = _as_float32(truth)
        look = lambda e: (_by_leaf(e, g), _by_leaf(e, e))  # noqa: E731
        parts = min(repeats, _PARTS)
        averages, (along, squares) = means(estimate, keys, parts, look)
        to_all = lambda a: jax.lax.map(lambda b: _by_leaf(a, b), averages)  # noqa: E731
        return _Products(
            along,
            squares,
            jax.lax.map(lambda m: _by_leaf(m, g), averages),
            jax.lax.map(to_all, averages),
            _by_leaf(g, g),
        )

    return run


def _as_float32(tree):
    return jax.tree.map(lambda g: g.astype(jnp.float32), tree)


def _by_leaf(a, b) -> jax.Array:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.stack([jnp.vdot(x, y) for x, y in pairs])


def _alignment(by_leaf: _Products, members: list[int]) -> Alignment:
    """Of the group whose leaves stand at the positions `members`."""
    p = jax.tree.map(lambda a: a[..., members].sum(-1), by_leaf)
    repeats = len(p.along)
    norm = float(p.norm) or math.nan
    cosines = p.along / np.sqrt(np.maximum(p.squares, 1e-30) * norm)
    slopes = p.along / norm
    sizes = np.bincount(np.arange(repeats) % len(p.means)) / repeats
    mean_square = sizes @ p.means @ sizes
    spread = (p.squares.sum() - repeats * mean_square) / (repeats - 1)
    off_axis = p.means / norm - np.outer(p.means_along, p.means_along) / norm**2
    squared, error = _mean_of_pairs(off_axis)
    return Alignment(
        cosine=float(cosines.mean()),
        cosine_std=float(cosines.std(ddof=1)),
        slope=float(slopes.mean()),
        slope_error=float(slopes.std(ddof=1) / math.sqrt(repeats)),
        variance=max(0.0, float(spread)) / norm,
        bias_squared=squared,
        bias_squared_error=math.hypot(error, _ROUNDING * float(p.squares.mean()) / norm),
        norm=math.sqrt(norm),
    )


_ROUNDING = 1e-6  # relative error of an inner product of many float32


def _mean_of_pairs(products: np.ndarray) -> tuple[float, float]:
    """Mean of <m_i, m_j> over pairs i != j, and its standard error.

    With row means h_i, <m_i, m_j> = mean + a_i + a_j + rest, where a_i is
    (n - 1) / (n - 2) (h_i - mean). The rows differ because a true bias has another
    product with each m_i, and by the rest. The variance of the jackknife, 4 var(h) / n,
    counts the rest nearly twice, so 2 (n - 3) / (n (n - 1)^2) var(rest) comes off.
    """
    n = len(products)
    pairs = ~np.eye(n, dtype=bool)
    mean = float(products[pairs].mean())
    if n < FEWEST:
        return mean, math.inf
    rows = np.where(pairs, products, 0.0).sum(1) / (n - 1)
    effects = (rows - mean) * (n - 1) / (n - 2)
    rest = (products - mean - effects[:, None] - effects[None])[pairs]
    rest_variance = (rest**2).sum() / (n * (n - 3))
    doubled = 2 * (n - 3) / (n * (n - 1) ** 2) * rest_variance
    least = 2 / (n * (n - 1)) * rest_variance
    return mean, math.sqrt(max(4 * rows.var(ddof=1) / n - doubled, least))


def _groups(loss_fn, params, batch) -> dict[str, list[int]]:
    """{node: positions of its block's parameters}, or {parameter: its position}."""
    paths = param_paths(params)
    everything = {OVERALL: list(range(len(paths)))}
    key = jax.random.key(0) if takes_key(loss_fn) else None
    try:
        program = trace(loss_fn, params, batch, key, loss_axes=2)
        args = arguments(loss_fn, params, batch, key)
        found = check_blocks(program, args, [False] * len(paths))
    except ValueError:  # no nodes, or marks that only a filter (nodes=) makes blocks of
        return {path: [i] for i, path in enumerate(paths)} | everything
    named = {b.name: [paths.index(p) for p in b.params] for b in found if b.params}
    return named | everything
