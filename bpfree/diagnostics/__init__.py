"""How good an estimator is, what it costs, and which one to take.

With independent estimates e_r of one gradient g, in each group of parameters,

    cosine    mean of <e_r, g> / (|e_r| |g|)
    slope     mean of <e_r, g> / |g|^2, which is 1 for an estimator right on average
    variance  E |e - E e|^2 / |g|^2
    bias      |E e - slope g| / |g|, what averaging does not take away

so that the mean of n estimates has cosine slope / sqrt(slope^2 + bias^2 + variance / n).
bias^2 is estimated by the mean of <e_r, e_s> / |g|^2 over pairs r != s, without the parts
along g. Its expectation is exact; where there is no bias it is negative half of the time.

`measure` needs a derivative to compare with; `recommend` needs forward passes only.
"""

from bpfree.diagnostics.alignment import Alignment, Report
from bpfree.diagnostics.cost import cost, products, samples_for
from bpfree.diagnostics.measuring import make_meter, measure
from bpfree.diagnostics.recommendation import Candidate, Recommendation
from bpfree.diagnostics.recommending import recommend

__all__ = [
    "Alignment",
    "Candidate",
    "Recommendation",
    "Report",
    "cost",
    "make_meter",
    "measure",
    "products",
    "recommend",
    "samples_for",
]
