"""bpfree: train JAX networks without backpropagation."""

from bpfree import diagnostics, predictors
from bpfree._jaxpr import MAPPED
from bpfree.adapters import supervised, tag_linen, tag_nnx
from bpfree.credit import causal, within_hops
from bpfree.estimators.activity_node_perturbation import activity_node_perturbation
from bpfree.estimators.approximated_likelihood_ratio import (
    approximated_likelihood_ratio,
)
from bpfree.estimators.backprop import backprop
from bpfree.estimators.combine import combine
from bpfree.estimators.forward_gradient import forward_gradient
from bpfree.estimators.iterative_node_perturbation import iterative_node_perturbation
from bpfree.estimators.learned_feedback import learned_feedback
from bpfree.estimators.likelihood_ratio import likelihood_ratio
from bpfree.estimators.node_perturbation import node_perturbation
from bpfree.estimators.presets import lr2021, ulr
from bpfree.estimators.weight_perturbation import weight_perturbation
from bpfree.nodes import blocks, hold, inject, kernel_input, node, pullback, record
from bpfree.transform import STATIC, aux, fault_message, static_args, value

__version__ = "0.1.0"

__all__ = [
    "MAPPED",
    "STATIC",
    "activity_node_perturbation",
    "approximated_likelihood_ratio",
    "aux",
    "backprop",
    "blocks",
    "causal",
    "combine",
    "diagnostics",
    "fault_message",
    "forward_gradient",
    "hold",
    "inject",
    "kernel_input",
    "iterative_node_perturbation",
    "learned_feedback",
    "likelihood_ratio",
    "lr2021",
    "node",
    "node_perturbation",
    "predictors",
    "pullback",
    "record",
    "static_args",
    "supervised",
    "tag_linen",
    "tag_nnx",
    "ulr",
    "value",
    "weight_perturbation",
    "within_hops",
]
