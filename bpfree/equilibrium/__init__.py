"""Energy models: primitive functions, relaxation to a fixed point, nudging rules.

The estimators of their gradients, one file each, are in here too; `bpfree` exports them.
"""

from bpfree.equilibrium.activations import dsilu, hard_sigmoid, identity, shifted_sigmoid
from bpfree.equilibrium.costs import cross_entropy, squared_error
from bpfree.equilibrium.energy import Energy, primitive
from bpfree.equilibrium.free_phase import predict
from bpfree.equilibrium.layered import layered
from bpfree.equilibrium.nudging import (
    Nudging,
    centred,
    holomorphic,
    one_sided,
    random_sign,
)
from bpfree.equilibrium.phases import Solution, solve
from bpfree.equilibrium.pooling import Pool, average_pool, max_pool, softmax_pool
from bpfree.equilibrium.relaxation import Relaxation, Relaxed

__all__ = [
    "Energy",
    "Nudging",
    "Pool",
    "Relaxation",
    "Relaxed",
    "Solution",
    "average_pool",
    "centred",
    "cross_entropy",
    "dsilu",
    "hard_sigmoid",
    "holomorphic",
    "identity",
    "layered",
    "max_pool",
    "one_sided",
    "predict",
    "primitive",
    "random_sign",
    "shifted_sigmoid",
    "softmax_pool",
    "solve",
    "squared_error",
]
