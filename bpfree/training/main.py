"""The command line: bpfree-train --config=configs/digits.py --workdir=runs/digits.

Entries of the config are overridden by --config.entry=value; JAX's options are flags too
(--jax_platforms=cpu, --jax_compilation_cache_dir=...). All else is in `loop.py`.
"""

import re
import sys
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bpfree.data.raw import DataError
from bpfree.training import processes
from bpfree.training.cache import keep_compiled
from bpfree.training.interrupt import Interrupted
from bpfree.training.loop import TrainingFault, fit
from bpfree.training.names import ConfigError, unknown
from bpfree.training.workdir import WorkdirError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with its argument: configs/digits.py:smoke."
)
WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "workdir", None, "Where the run is kept and resumed."
)


_PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace a block into workdir/profile (TensorBoard, Perfetto)."
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Write curves for TensorBoard into workdir/tensorboard."
)
_COORDINATOR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0, if the run has many processes."
)
_PROCESSES: flags.FlagHolder[Any] = flags.DEFINE_integer(
    "num_processes", None, "Processes of the run; srun and mpirun say so, too.", 1
)
_PROCESS: flags.FlagHolder[Any] = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, 0 to num_processes - 1.", 0
)
_COMPILE_FOR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "compile_for", None, "Only say what a step costs on tpu:v5e:4x4, h100:8 or cpu:8."
)
_CACHE = flags.DEFINE_bool(
    "compilation_cache",
    True,
    "Keep compiled programs in ~/.cache/bpfree/jax for the next run, or where "
    "--jax_compilation_cache_dir says.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"arguments are flags (--name=value), not {argv[1:]}")
    if _COMPILE_FOR.value is not None:
        from bpfree.hardware.config import compile_for

        try:
            print(compile_for(CONFIG.value, _COMPILE_FOR.value))
        except (ConfigError, DataError) as error:
            sys.exit(f"bpfree-train: {error}")
        return
    if _CACHE.value:
        keep_compiled()
    try:
        processes.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        result = fit(
            CONFIG.value,
            WORKDIR.value,
            profile=_PROFILE.value,
            tensorboard=_TENSORBOARD.value,
        )
    except (ConfigError, DataError, TrainingFault, WorkdirError) as error:
        sys.exit(f"bpfree-train: {error}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(f"bpfree-train: {processes.lost(error)}", file=sys.stderr, flush=True)
        processes.leave(1)
    except Interrupted as error:
        print(f"bpfree-train: {error}", file=sys.stderr)
        sys.exit(128 + error.signum)
    if not processes.is_main():
        return
    if result.steps == result.resumed_from:
        print(f"{WORKDIR.value} was already finished, at step {result.steps}")
    print(f"test accuracy {result.test_accuracy:.4f}")


def parse(argv: list[str]) -> list[str]:
    try:
        rest = app.parse_flags_with_usage(argv)
    except AttributeError as error:  # an override of an entry the config does not have
        files = [a.split("=", 1)[1] for a in argv if re.match("--?config=", a)]
        loaded = (flags.FLAGS["config"].parser.parse(file) for file in files)
        entries = [entry for config in loaded for entry in _entries(config)]
        name = re.findall(r"\w+", str(error))[0]
        sys.exit(f"bpfree-train: {unknown('config entry', name, entries)}")
    if flags.FLAGS["verbosity"].using_default_value:
        # At the usual level, info, Orbax says very much.
        flags.FLAGS.verbosity = logging.WARNING  # type: ignore[assignment]
    return rest


def _entries(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of the entries that flags can override."""
    entries: list[str] = []
    for name, value in config.items():
        nested = isinstance(value, ConfigDict)
        entries += _entries(value, f"{prefix}{name}.") if nested else [prefix + name]
    return entries


def run() -> None:
    """The console script `bpfree-train`."""
    jax.config.config_with_absl()
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["workdir", "compile_for"],
        lambda given: any(value is not None for value in given.values()),
        "Flag --workdir must have a value other than None.",
    )
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
