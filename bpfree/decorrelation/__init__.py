"""Decorrelation and input-side conditioning of an optimiser: `bpfree.decorrelate`."""

from bpfree.decorrelation.direct import Direct, foof, whiten
from bpfree.decorrelation.rules import Moving, Rule, copi, dbp, gain
from bpfree.decorrelation.state import DecorrelationState
from bpfree.decorrelation.wrapper import RULES, decorrelate, find_layers

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
