"""bpfree: train JAX networks without backpropagation.

The examples in the docstrings of this package start from these names:

    >>> import bpfree, jax, jax.numpy as jnp, optax
    >>> def loss_fn(params, batch):  # -> losses (B,)
    ...     h = jnp.tanh(bpfree.node(batch["x"] @ params["w1"], "hidden"))
    ...     y = bpfree.node(h @ params["w2"], "output")
    ...     return ((y - batch["t"]) ** 2).sum(1)
    >>> params = {"w1": jnp.ones((3, 4)), "w2": jnp.ones((4, 2))}
    >>> batch = {"x": jnp.ones((5, 3)), "t": jnp.zeros((5, 2))}
    >>> zeros = optax.tree.zeros_like(params)
"""

from bpfree import decorrelation, diagnostics, equilibrium, robustness
from bpfree.adapters import supervised
from bpfree.decorrelation import decorrelate
from bpfree.equilibrium import layered, primitive
from bpfree.equilibrium.equilibrium_propagation import equilibrium_propagation
from bpfree.equilibrium.equilibrium_references import (
    backprop_through_time,
    recurrent_backprop,
)
from bpfree.equilibrium.online_equilibrium_propagation import (
    online_equilibrium_propagation,
)
from bpfree.estimators import predictors
from bpfree.estimators.activity_node_perturbation import activity_node_perturbation
from bpfree.estimators.approximated_likelihood_ratio import approximated_likelihood_ratio
from bpfree.estimators.backprop import backprop
from bpfree.estimators.base import static_args
from bpfree.estimators.combine import combine
from bpfree.estimators.forward_gradient import forward_gradient
from bpfree.estimators.iterative_node_perturbation import iterative_node_perturbation
from bpfree.estimators.learned_feedback import learned_feedback
from bpfree.estimators.likelihood_ratio import likelihood_ratio
from bpfree.estimators.node_perturbation import node_perturbation
from bpfree.estimators.reading import aux, fault_message, metrics, value
from bpfree.estimators.seed_replay import seed_replay
from bpfree.estimators.weight_perturbation import weight_perturbation
from bpfree.nodes import blocks, hold, inject, node, pullback, record
from bpfree.program.blocks import BackpropagationWarning
from bpfree.program.tags import INFERRED
from bpfree.sampling.credit import by_segment
from bpfree.sampling.rules import causal, within_hops

__version__ = "0.1.0"

__all__ = [
    "BackpropagationWarning",
    "INFERRED",
    "activity_node_perturbation",
    "approximated_likelihood_ratio",
    "aux",
    "backprop",
    "backprop_through_time",
    "blocks",
    "by_segment",
    "causal",
    "combine",
    "decorrelate",
    "decorrelation",
    "diagnostics",
    "equilibrium",
    "equilibrium_propagation",
    "fault_message",
    "forward_gradient",
    "hold",
    "inject",
    "iterative_node_perturbation",
    "layered",
    "learned_feedback",
    "likelihood_ratio",
    "metrics",
    "node",
    "node_perturbation",
    "online_equilibrium_propagation",
    "predictors",
    "primitive",
    "pullback",
    "record",
    "recurrent_backprop",
    "robustness",
    "seed_replay",
    "static_args",
    "supervised",
    "value",
    "weight_perturbation",
    "within_hops",
]
