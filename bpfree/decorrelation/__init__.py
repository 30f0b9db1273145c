"""Decorrelation and input-side conditioning of any optimiser; see `bpfree.decorrelate`."""

from bpfree.decorrelation.direct import Direct, foof, whiten
from bpfree.decorrelation.rules import Moving, Rule, copi, dbp, gain
from bpfree.decorrelation.wrapper import (
    RULES,
    DecorrelationState,
    decorrelate,
    fault_message,
    find_layers,
    states,
)

__all__ = [
    "RULES",
    "DecorrelationState",
    "Direct",
    "Moving",
    "Rule",
    "copi",
    "dbp",
    "decorrelate",
    "fault_message",
    "find_layers",
    "foof",
    "gain",
    "states",
    "whiten",
]
