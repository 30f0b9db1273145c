"""bpfree: train JAX networks without backpropagation."""

from bpfree._jaxpr import MAPPED
from bpfree.adapters import supervised, tag_linen, tag_nnx
from bpfree.estimators.approximated_likelihood_ratio import (
    approximated_likelihood_ratio,
)
from bpfree.estimators.backprop import backprop
from bpfree.estimators.combine import combine
from bpfree.estimators.likelihood_ratio import likelihood_ratio
from bpfree.estimators.node_perturbation import node_perturbation
from bpfree.estimators.presets import lr2021, ulr
from bpfree.nodes import blocks, hold, inject, kernel_input, node, pullback, record
from bpfree.transform import STATIC, aux, fault_message, value

__version__ = "0.1.0"

__all__ = [
    "MAPPED",
    "STATIC",
    "approximated_likelihood_ratio",
    "aux",
    "backprop",
    "blocks",
    "combine",
    "fault_message",
    "hold",
    "inject",
    "kernel_input",
    "likelihood_ratio",
    "lr2021",
    "node",
    "node_perturbation",
    "pullback",
    "record",
    "supervised",
    "tag_linen",
    "tag_nnx",
    "ulr",
    "value",
]
