"""Strict numerics for the whole suite: float64 truths, no silent casts or broadcasts.

Rank promotion "raise" alone catches a classic fault of node perturbation, a loss `()` or
`(B,)` broadcast against `(B, 1)`. Eight virtual CPU devices stand for a real machine.
XLA compiles with few optimisations, three times faster: the suite is all compilation.
"""

import jax
import pytest

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
