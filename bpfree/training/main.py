"""The command line: bpfree-train --config=digits --workdir=runs/digits.

Entries of the config are overridden by --config.entry=value; JAX's options are flags too
(--jax_platforms=cpu, --jax_compilation_cache_dir=...). All else is in `loop.py`.
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from bpfree.training import command_line, config_files, processes, resume
from bpfree.training.cache import keep_compiled
from bpfree.training.loop import fit

_EXTEND = flags.DEFINE_integer(
    "extend", 0, "Go on with a finished run for so many steps more.", 0
)
flags.DEFINE_bool("list", False, "Show the configs that come with bpfree.")
_PROFILE = flags.DEFINE_bool(
    "profile", False, "Trace a block into workdir/profile (TensorBoard, Perfetto)."
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Write curves for TensorBoard into workdir/tensorboard."
)
_WANDB: flags.FlagHolder[Any] = flags.DEFINE_string(
    "wandb", None, "Send curves to this project of Weights & Biases."
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
_HELP = """Train what a config describes, or go on where the working directory stopped.

    bpfree-train --config=digits --workdir=runs/digits
    bpfree-train --config=./mine.py:np --workdir=runs/np --config.batch_size=64
"""


def main(words: list[str]) -> None:
    if _CACHE.value:
        keep_compiled()
    try:
        if _COMPILE_FOR.value:
            from bpfree.hardware.config import compile_for

            print(compile_for(command_line.config(), _COMPILE_FOR.value))
        else:
            _train()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(f"bpfree-train: {processes.lost(error)}", file=sys.stderr, flush=True)
        processes.leave(1)


def _train() -> None:
    config, workdir = command_line.config(), Path(command_line.WORKDIR.value)
    resume.check_place(workdir)
    if _EXTEND.value:
        config.num_steps = resume.extended(workdir, config.num_steps, _EXTEND.value)
    processes.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    result = fit(
        config,
        workdir,
        profile=_PROFILE.value,
        tensorboard=_TENSORBOARD.value,
        wandb=_WANDB.value or "",
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if not processes.is_main():
        return
    if result.steps == result.resumed_from:
        print(
            f"{workdir} was already finished, at step {result.steps}; --extend=1000 "
            "would go on for 1000 steps more"
        )
    for name, value in result.test.items():
        print(f"test {name} {value:.4f}")


def run() -> None:
    """The console script `bpfree-train`."""
    if "--list" in sys.argv:
        for name, purpose in config_files.listed().items():
            print(f"{name:20} {purpose}")
        return
    jax.config.config_with_absl()
    command_line.run("bpfree-train", main, _HELP, __name__)


if __name__ == "__main__":
    run()
