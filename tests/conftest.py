"""Strict numerics for the whole suite: float64 truths, no silent casts or broadcasts.

Rank promotion "raise" alone catches a classic fault of node perturbation, a loss `()` or
`(B,)` broadcast against `(B, 1)`. Eight virtual CPU devices stand for a real machine.
XLA compiles with few optimisations and its older emitters, in one piece, six times
faster: the suite is all compilation.
"""

import itertools
import os
import time

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
jax.config.update("jax_traceback_in_locations_limit", 0)  # none in compiled programs
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for processes that tests start
KEPT = 3 * 24 * 3600  # seconds that a compiled program is kept


def pytest_configure(config):
    """Compiled programs are kept between tests, workers and runs; stale ones go.

    They stand in pytest's own cache: `pytest --cache-clear` begins anew.
    """
    if not hasattr(config, "cache"):  # -p no:cacheprovider
        return
    folder = config.cache.mkdir("jax")
    if not hasattr(config, "workerinput"):
        for file in folder.iterdir():
            if file.stat().st_mtime < time.time() - KEPT:
                file.unlink()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """`quick`: where no test of a file is marked so, the first of the default run."""
    for _, tests in itertools.groupby(items, key=lambda item: item.path):
        default = [t for t in tests if not t.get_closest_marker("slow")]
        if default and not any(t.get_closest_marker("quick") for t in default):
            default[0].add_marker("quick")


@pytest.fixture
def optimized():
    """For tests that read a compiled program: XLA optimises as it does for users."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
