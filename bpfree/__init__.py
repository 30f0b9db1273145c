"""bpfree: train JAX networks without backpropagation."""

from bpfree import equilibrium
from bpfree._jaxpr import MAPPED
from bpfree.adapters import supervised, tag_linen, tag_nnx
from bpfree.equilibrium import layered, primitive
from bpfree.estimators.backprop import backprop
from bpfree.estimators.combine import combine
from bpfree.estimators.continual_equilibrium_propagation import (
    continual_equilibrium_propagation,
)
from bpfree.estimators.equilibrium_propagation import equilibrium_propagation
from bpfree.estimators.equilibrium_references import (
    backprop_through_time,
    recurrent_backprop,
)
from bpfree.estimators.likelihood_ratio import likelihood_ratio
from bpfree.estimators.node_perturbation import node_perturbation
from bpfree.estimators.online_equilibrium_propagation import (
    online_equilibrium_propagation,
)
from bpfree.nodes import blocks, hold, inject, kernel_input, node, pullback, record
from bpfree.transform import STATIC, aux, fault_message, metrics, value

__version__ = "0.1.0"

__all__ = [
    "MAPPED",
    "STATIC",
    "aux",
    "backprop",
    "backprop_through_time",
    "blocks",
    "combine",
    "continual_equilibrium_propagation",
    "equilibrium",
    "equilibrium_propagation",
    "fault_message",
    "hold",
    "inject",
    "kernel_input",
    "layered",
    "likelihood_ratio",
    "metrics",
    "node",
    "node_perturbation",
    "online_equilibrium_propagation",
    "primitive",
    "pullback",
    "record",
    "recurrent_backprop",
    "supervised",
    "tag_linen",
    "tag_nnx",
    "value",
]
