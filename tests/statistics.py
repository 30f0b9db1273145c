"""Self-calibrating gates for stochastic estimators (a helper, not a test).

A gate compares independent estimates with a truth in units of the estimates' own spread:
no tolerance is typed by hand. `mean_gate` needs both of its statistics. The projection
on the truth sees errors of scale; the coordinatewise z sees everything else, but a scale
error of 10 % hardly moves it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

LIMIT = 5.0  # |z| of a normal statistic: once in two million
_TAIL = stats.norm.sf(LIMIT)


class Gate(NamedTuple):
    """What a gate measured.

    Attributes:
      slope: of the mean estimate on the truth; 1 for an unbiased estimator.
      error: standard error of the slope: what the gate can resolve.
      z: (slope - 1) / error.
      rms: root mean square of the coordinatewise z.
      band: where rms must lie.
      fixed: whether all coordinates that never vary equal the truth.
    """

    slope: float
    error: float
    z: float
    rms: float
    band: tuple[float, float]
    fixed: bool

    @property
    def passed(self) -> bool:
        in_band = self.band[0] < self.rms < self.band[1]
        return bool(abs(self.z) < LIMIT and in_band and self.fixed)


def flat(tree: Any, repeats: bool = False) -> np.ndarray:
    """The leaves of a tree as one float64 vector, or as rows where repeats come first."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    rows = leaves[0].shape[0] if repeats else 1
    out = np.concatenate([leaf.reshape(rows, -1) for leaf in leaves], axis=1)
    return out if repeats else out[0]


def mean_gate(estimates: Any, truth: Any, truth_repeats: bool = False) -> Gate:
    """Compare the mean of (R, ...) estimates with the truth.

    Args:
      estimates: tree with R independent estimates in front of every leaf.
      truth: the same tree without them, or, with truth_repeats, with its own number of
        independent estimates, whose error is then accounted for.
    """
    x = flat(estimates, repeats=True)
    g, noise_of_g = _truth(truth, truth_repeats)
    assert g.shape == x.shape[1:]
    projected = (x @ g) / (g @ g)
    slope = projected.mean()
    error = np.sqrt(projected.var(ddof=1) / len(x) + (g @ noise_of_g @ g) / (g @ g) ** 2)

    deviation = x.mean(0) - g
    variance = x.var(0, ddof=1) / len(x) + np.diag(noise_of_g)
    random = variance > (1e-6 * np.abs(g).max()) ** 2 / len(x)  # float32 rounding is less
    fixed = np.allclose(x[:, ~random], g[None, ~random], rtol=1e-5, atol=1e-7)
    z = deviation[random] / np.sqrt(variance[random])
    return Gate(
        slope=float(slope),
        error=float(error),
        z=float((slope - 1) / error),
        rms=float(np.sqrt(np.mean(z**2))),
        band=_band(x[:, random]),
        fixed=bool(fixed),
    )


def _truth(truth, truth_repeats):
    g = flat(truth, repeats=truth_repeats)
    if not truth_repeats:
        return g, np.zeros((g.size, g.size))
    return g.mean(0), np.cov(g, rowvar=False) / len(g)


def _band(x: np.ndarray) -> tuple[float, float]:
    """Limits of the rms of z: coordinates are correlated, so count the free ones.

    The mean of z^2 has mean 1 and variance 2 / n with n = p^2 / sum(correlation^2), as a
    chi-squared variable of n degrees of freedom divided by n.
    """
    p = x.shape[1]
    squares = np.corrcoef(x, rowvar=False).reshape(p, p) ** 2
    by_chance = (p * p - p) / (len(x) - 1)  # of an empirical correlation of none
    free = p * p / max(squares.sum() - by_chance, p)
    low, high = stats.chi2.ppf([_TAIL, 1 - _TAIL], free) / free
    return float(np.sqrt(low)), float(np.sqrt(high))


def variance_z(wide: Any, narrow: Any, ratio: float) -> float:
    """z of `total variance of wide == ratio * total variance of narrow`."""
    a, b = (_square_deviations(t) for t in (wide, narrow))
    spread = np.sqrt(a.var(ddof=1) / len(a) + ratio**2 * b.var(ddof=1) / len(b))
    return float((a.mean() - ratio * b.mean()) / spread)


def _square_deviations(estimates) -> np.ndarray:
    x = flat(estimates, repeats=True)
    bessel = len(x) / (len(x) - 1)
    return bessel * ((x - x.mean(0)) ** 2).sum(1)


def slope_in_log(xs, ys) -> float:
    """Order of convergence: slope of log y on log x."""
    return float(np.polyfit(np.log(np.asarray(xs)), np.log(np.asarray(ys)), 1)[0])


def correlation_z(a: jax.Array, b: jax.Array) -> float:
    """z of the empirical correlation of two independent standardised samples."""
    a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
    return float(np.mean(a * b) / np.std(a * b) * np.sqrt(a.size))


def relative_error(tree: Any, truth: Any) -> float:
    a, b = flat(tree), flat(truth)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_close(a: Any, b: Any, rtol: float, atol: float = 0.0) -> None:
    """Trees equal up to rounding; atol is in units of the largest entry of the leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        assert x.shape == y.shape
        scale = float(jnp.abs(y).max()) if y.size else 1.0
        np.testing.assert_allclose(
            np.asarray(x, np.float64),
            np.asarray(y, np.float64),
            rtol=rtol,
            atol=atol * scale,
            err_msg=jax.tree_util.keystr(path),
        )
