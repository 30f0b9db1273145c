"""How estimates of a gradient compare with the true one, and a table of it."""

import math
from typing import NamedTuple

OVERALL = "(all)"
FEWEST = 4  # estimates from whose pairs a standard error is known


class Alignment(NamedTuple):
    """How estimates of one group of parameters compare with its true gradient g.

    The equations stand in the docstring of `bpfree.diagnostics`. All numbers are relative
    to g, and nan where g is zero.

    Attributes:
      cosine, cosine_std: mean and standard deviation over single estimates.
      slope, slope_error: mean and its standard error.
      variance: of a single estimate, relative to |g|^2.
      bias_squared, bias_squared_error: estimate of bias^2, negative by chance, and its
        standard error, which takes four repeats: infinite with fewer.
      norm: |g|.

    Example:
        >>> a = bpfree.diagnostics.Alignment(0.5, 0.1, 1.0, 0.05, 3.0, 0.04, 0.2, 1.0)
        >>> a.is_biased, a.bias
        (False, 0.0)
        >>> round(a.cosine_of_mean(9), 3)
        0.866
        >>> round(a.estimates_for(0.9), 1)
        12.8
    """

    cosine: float
    cosine_std: float
    slope: float
    slope_error: float
    variance: float
    bias_squared: float
    bias_squared_error: float
    norm: float

    @property
    def is_biased(self) -> bool:
        """Whether bias^2 is more than three standard errors above 0."""
        return self.bias_squared > 3 * self.bias_squared_error

    @property
    def bias(self) -> float:
        """Relative to |g|; 0 where it is not distinguishable from 0."""
        return math.sqrt(self.bias_squared) if self.is_biased else 0.0

    @property
    def bias_error(self) -> float:
        """Standard error of the bias; without one, the bias that would have been seen."""
        if self.is_biased:
            return self.bias_squared_error / (2 * self.bias)
        return math.sqrt(max(self.bias_squared, 0.0) + 3 * self.bias_squared_error)

    def cosine_of_mean(self, estimates: float) -> float:
        """Cosine with g of the mean of so many `estimates`."""
        spread = self.bias**2 + self.variance / estimates
        return self.slope / math.sqrt(self.slope**2 + spread)

    def estimates_for(self, cosine: float) -> float:
        """Estimates whose mean has this `cosine`; inf if the bias (or sign) forbids it.

        Times the estimator's own `num_samples`, it is the samples needed. Raises
        ValueError unless 0 < cosine < 1.
        """
        if not 0 < cosine < 1:
            raise ValueError(f"cosine={cosine} must be between 0 and 1")
        if not self.slope > 0:
            return math.inf
        allowed = self.slope**2 * (1 / cosine**2 - 1) - self.bias**2
        return self.variance / allowed if allowed > 0 else math.inf

    def bias_in_words(self) -> str:
        """The bias with its standard error, or that it is not distinguishable from 0."""
        if self.is_biased:
            return f"{self.bias:.2g} +- {self.bias_error:.1g}"
        if math.isfinite(self.bias_error):
            return f"not distinguishable from 0 (below {self.bias_error:.2g})"
        return f"not distinguishable from 0 (takes {FEWEST} estimates)"


class Report(NamedTuple):
    """What `measure` found; `print` it.

    Attributes:
      groups: {node, or parameter where the marks make no blocks: Alignment}, and all
        parameters together under "(all)".
      cost: products of one update, in inferences of the batch (see `cost`).
      repeats: number of estimates that were drawn.

    Example:
        >>> report = bpfree.diagnostics.measure(bpfree.backprop(loss_fn), params, batch)
        >>> list(report.groups)
        ['hidden', 'output', '(all)']
        >>> round(report.overall.cosine, 3)
        1.0
    """

    groups: dict[str, Alignment]
    cost: float
    repeats: int

    @property
    def overall(self) -> Alignment:
        """Of all parameters together."""
        return self.groups[OVERALL]

    def __str__(self) -> str:
        width = max(map(len, self.groups))
        lines = [
            f"{'group':<{width}}  cosine          slope             variance"
            "  estimates for cosine 0.9   bias"
        ]
        for name, a in self.groups.items():
            needed = a.estimates_for(0.9)
            lines.append(
                f"{name:<{width}}  {a.cosine:.3f} +- {a.cosine_std:.3f}"
                f"  {a.slope:.3f} +- {a.slope_error:.3f}"
                f"  {a.variance:10.3g}  {needed:24.3g}   {a.bias_in_words()}"
            )
        lines.append(
            f"{self.repeats} estimates; one update costs {self.cost:.1f} inferences"
        )
        return "\n".join(lines)
