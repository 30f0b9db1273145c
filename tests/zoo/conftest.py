"""Other people's code runs in JAX as they run it, with its usual promotion."""

import jax
import pytest


@pytest.fixture(autouse=True)
def usual_numerics():
    """Their code adds floats to integers and vectors to matrices."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
