"""Strict numerics for the whole suite: float64 truths, no silent casts or broadcasts.

Rank promotion "raise" alone catches a classic fault of node perturbation, a loss `()` or
`(B,)` broadcast against `(B, 1)`. Eight virtual CPU devices stand for a real machine.
XLA compiles with few optimisations and its older emitters, in one piece, six times
faster: the suite is all compilation. Processes that tests start inherit the flags.
"""

import os

import jax
import pytest

# JAX reads the flags when it first compiles. Later releases have no other emitters.
if jax.__version_info__ < (0, 11):
    older = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {older}"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimized():
    """For tests that read a compiled program: XLA as users run it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
