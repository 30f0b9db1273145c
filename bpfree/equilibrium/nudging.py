r"""Nudging rules: every variant of EP is one quadrature rule for d/dbeta at beta = 0.

With F = -(Phi - beta C) and s*(beta) the equilibrium of the nudged net,

    gradient = Re sum_n w_n dF/dtheta(s*(beta_n), beta_n) / B,
    beta_n = radius root_n,    w_n = coefficient_n / radius.

Weights and inputs are real, so s*(conj beta) = conj s*(beta): of each conjugate pair only
the point above the real axis is relaxed, with twice the coefficient.
"""

from typing import NamedTuple

import jax
import numpy as np

Radius = float | jax.Array


class Nudging(NamedTuple):
    """A quadrature rule.

    Attributes:
      radius: |beta|, a number, perhaps traced.
      roots: the points over the radius, complex, conjugate pairs folded: Im >= 0.
      coefficients: the weights times the radius.
      random_sign: whether each update draws the sign of the radius.
      coarser: coefficients of the rule with half the points, on the same points; () if
        it has only one. With errors e^(N/2) and e^N of the two, their disagreement is
        about the root of the finer one's error: large where the radius is too large.

    Example:
        >>> rule = bpfree.equilibrium.holomorphic(0.4, 4)
        >>> rule.radius, len(rule.real), len(rule.complex)
        (0.4, 2, 1)
    """

    radius: Radius
    roots: tuple[complex, ...]
    coefficients: tuple[complex, ...]
    random_sign: bool = False
    coarser: tuple[complex, ...] = ()

    @property
    def real(self) -> tuple[int, ...]:
        """Which points lie on the real axis."""
        return tuple(i for i, root in enumerate(self.roots) if root.imag == 0)

    @property
    def complex(self) -> tuple[int, ...]:
        """Which points lie above the real axis."""
        return tuple(i for i, root in enumerate(self.roots) if root.imag != 0)


def one_sided(beta: Radius) -> Nudging:
    """(F'(beta) - F'(0)) / beta: classic EP, error O(beta).

    Args:
      beta: nudging strength, a number or a traced scalar, not 0; either sign.

    Returns:
      A `bpfree.equilibrium.Nudging`.

    Raises:
      ValueError: 0, or a number that is not finite.

    Example:
        >>> rule = bpfree.equilibrium.one_sided(0.1)
        >>> rule.coefficients
        ((-1+0j), (1+0j))
    """
    return _rule(abs_not_zero(beta), (0, 1), (-1, 1))


def random_sign(beta: Radius) -> Nudging:
    """One-sided with the sign of beta drawn for each batch: odd errors average out.

    Args:
      beta: nudging strength, a number or a traced scalar, not 0.

    Returns:
      A `bpfree.equilibrium.Nudging`.

    Raises:
      ValueError: 0, or a number that is not finite.

    Example:
        >>> bpfree.equilibrium.random_sign(0.1).random_sign
        True
    """
    return one_sided(beta)._replace(random_sign=True)


def centred(beta: Radius) -> Nudging:
    """(F'(beta) - F'(-beta)) / (2 beta): error O(beta^2).

    Args:
      beta: nudging strength, a number or a traced scalar, not 0.

    Returns:
      A `bpfree.equilibrium.Nudging`.

    Raises:
      ValueError: 0, or a number that is not finite.

    Example:
        >>> bpfree.equilibrium.centred(0.4).roots
        ((1+0j), (-1+0j))
    """
    return holomorphic(beta, 2)


def holomorphic(radius: Radius, num_points: int) -> Nudging:
    r"""N points on a circle in the complex plane: error O(radius^N), for N >= 2.

    .. math:: g = \frac1N \sum_{n=0}^{N-1} \frac{F'(\beta_n)}{\beta_n}, \qquad
        \beta_n = r\, e^{2\pi i n/N}

    the first Fourier coefficient of the response. N = 2 is `centred`, with no complex
    number.

    The radius has to lie inside the disc where the equilibrium is analytic in beta. In a
    trained classifier that disc is a hundred times smaller for some examples than for
    most.

    Args:
      radius: r, a number or a traced scalar, not 0.
      num_points: N, at least 2. N/2 + 1 phases are relaxed, the others follow by
        symmetry.

    Returns:
      A `bpfree.equilibrium.Nudging`.

    Raises:
      ValueError: fewer than two points, or a radius that is 0 or not finite.

    Source: Laborieux and Zenke 2022, arXiv:2209.00530.

    Example:
        >>> len(bpfree.equilibrium.holomorphic(0.4, 10).roots)
        6
    """
    if num_points < 2:
        raise ValueError(
            f"num_points={num_points}: the circle needs at least 2; for one phase use "
            "one_sided(beta)"
        )
    roots, coefficients = [], []
    for n in range(num_points // 2 + 1):
        on_axis = 2 * n in (0, num_points)
        angle = np.exp(2j * np.pi * n / num_points)
        root = complex(round(angle.real)) if on_axis else complex(angle)
        roots.append(root)
        coefficients.append((1 if on_axis else 2) / (num_points * root))
    rule = _rule(abs_not_zero(radius), roots, coefficients)
    if num_points % 2 or num_points == 2:
        return rule
    coarser = [2 * c if n % 2 == 0 else 0 for n, c in enumerate(rule.coefficients)]
    return rule._replace(coarser=tuple(map(complex, coarser)))


def _rule(radius, roots, coefficients) -> Nudging:
    return Nudging(
        radius, tuple(complex(r) for r in roots), tuple(complex(c) for c in coefficients)
    )


def abs_not_zero(beta: Radius) -> Radius:
    """beta, checked where it is a concrete number."""
    if isinstance(beta, (int, float)) and not (np.isfinite(beta) and beta != 0):
        raise ValueError(f"the nudging strength {beta} must be finite and not zero")
    return beta
