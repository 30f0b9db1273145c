"""What `recommend` found, and a table and a sentence of it."""

import math
from collections.abc import Callable
from typing import NamedTuple

from bpfree.estimators.base import EstimatorTransformation

Make = Callable[[int], EstimatorTransformation]


class Candidate(NamedTuple):
    """One estimator at the budget.

    Attributes:
      name: the key in `candidates=`, or how the call is written.
      samples: its num_samples.
      cost: products of one update, in inferences of the batch.
      descent, descent_error: of the mean loss by one update at the best rate, relative to
        the loss; mean over estimates and standard error. Negative where every rate does
        harm.
      rate: of SGD; an eighth of the rate at which one step has the most descent, since
        what a single step allows is too much for a run (`scripts/recommend.py`: halves
        diverge, and a quarter is on the edge).
      make: `num_samples -> estimator`.

    Example:
        >>> make = lambda n: bpfree.node_perturbation(loss_fn, num_samples=n)
        >>> found = bpfree.diagnostics.recommend(
        ...     loss_fn, params, batch, repeats=2, candidates={"np": make}
        ... )
        >>> found.best.name, found.best.samples > 0
        ('np', True)
    """

    name: str
    samples: int
    cost: float
    descent: float
    descent_error: float
    rate: float
    make: Make


class Recommendation(NamedTuple):
    """What `recommend` found, the most descent first; `print` it.

    Attributes:
      candidates: all that took the loss function.
      loss: mean loss at these parameters.
      refused: {name: reason} of the others.

    Example:
        >>> make = lambda n: bpfree.node_perturbation(loss_fn, num_samples=n)
        >>> found = bpfree.diagnostics.recommend(
        ...     loss_fn, params, batch, repeats=2, candidates={"np": make}
        ... )
        >>> tx = optax.chain(found.estimator(), optax.sgd(found.best.rate))
    """

    candidates: tuple[Candidate, ...]
    loss: float
    refused: dict[str, str] = {}

    @property
    def best(self) -> Candidate:
        """The candidate with the most descent."""
        return self.candidates[0]

    def estimator(self) -> EstimatorTransformation:
        """The best one, with its samples."""
        return self.best.make(self.best.samples)

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.candidates)
        lines = [f"{'estimator':<{width}}  samples  cost  descent of the loss      rate"]
        lines += [
            f"{c.name:<{width}}  {c.samples:>7}  {c.cost:4.1f}"
            f"  {100 * c.descent:6.2f} +- {100 * c.descent_error:.2f} %  {c.rate:8.2g}"
            for c in self.candidates
        ]
        lines += [f"{name} is left out: {why}" for name, why in self.refused.items()]
        return "\n".join([*lines, self._in_words()])

    def _in_words(self) -> str:
        best = self.best
        if best.descent <= 2 * best.descent_error:
            return (
                "No candidate lowers the loss with certainty: more samples (budget=), a "
                "larger batch, or more repeats= to see a smaller effect."
            )
        close = [
            c.name
            for c in self.candidates[1:]
            if best.descent - c.descent
            < 2 * math.hypot(best.descent_error, c.descent_error)
        ]
        also = f" Not distinguishable from it: {', '.join(close)}." if close else ""
        return (
            f"Use {best.name} with num_samples={best.samples}; start SGD at a rate of "
            f"{best.rate:.2g}.{also}"
        )
