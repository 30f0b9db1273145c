"""JAX's persistent compilation cache, in the user's cache directory."""

import os
from pathlib import Path

import jax

_DIR = "jax_compilation_cache_dir"


def keep_compiled() -> None:
    """Turn it on, unless the user has placed it."""
    if not getattr(jax.config, _DIR):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update(_DIR, str(Path(home) / "bpfree" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
