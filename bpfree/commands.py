"""The console scripts; what they run needs the extra `train`, which the core does not."""

import importlib
import os
import sys


def train() -> None:
    """`bpfree-train`."""
    _run("bpfree-train", "bpfree.training.main")


def evaluate() -> None:
    """`bpfree-eval`."""
    _run("bpfree-eval", "bpfree.training.evaluate")


def sweep() -> None:
    """`bpfree-sweep`."""
    _run("bpfree-sweep", "bpfree.sweeps.main")


def _run(command: str, module: str) -> None:
    try:
        run = importlib.import_module(module).run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bpfree"):
            raise
        sys.exit(
            f"{command} needs {error.name}, which is not installed: "
            "pip install 'bpfree[train]'"
        )
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
