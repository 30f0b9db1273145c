"""The command bpfree-eval: a run's newest checkpoint, evaluated in one line of JSON."""

import json

import jax
from absl import flags

from bpfree.training import command_line
from bpfree.training.cache import keep_compiled
from bpfree.training.trained import evaluate

_PART = flags.DEFINE_enum(
    "part", "validation", ["validation", "test"], "Of the data: validation or test."
)
_HELP = """Evaluate the newest checkpoint of a run; prints a line of JSON.

    bpfree-eval --workdir=runs/digits
    bpfree-eval --workdir=runs/digits --part=test
"""


def main(words: list[str]) -> None:
    keep_compiled()
    print(json.dumps(evaluate(command_line.WORKDIR.value, _PART.value)))


def run() -> None:
    """The console script `bpfree-eval`."""
    jax.config.config_with_absl()
    command_line.run("bpfree-eval", main, _HELP, __name__, takes_config=False)


if __name__ == "__main__":
    run()
