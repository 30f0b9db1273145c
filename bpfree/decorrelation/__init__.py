"""Decorrelation and input-side conditioning of an optimiser: `bpfree.decorrelate`."""

from bpfree.decorrelation.direct import Direct, foof, whiten
from bpfree.decorrelation.kernels import find_layers
from bpfree.decorrelation.rule import Rule
from bpfree.decorrelation.rules import Moving, copi, dbp, gain
from bpfree.decorrelation.state import DecorrelationState
from bpfree.decorrelation.wrapper import RULES, decorrelate

__all__ = [
    "RULES",
    "DecorrelationState",
    "Direct",
    "Moving",
    "Rule",
    "copi",
    "dbp",
    "decorrelate",
    "find_layers",
    "foof",
    "gain",
    "whiten",
]
