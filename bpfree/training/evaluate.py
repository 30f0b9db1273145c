"""The command bpfree-eval: a run's newest checkpoint, evaluated in one line of JSON."""

import json

import jax
from absl import app, flags

from bpfree.training import command_line
from bpfree.training.cache import keep_compiled
from bpfree.training.names import ConfigError
from bpfree.training.trained import evaluate

_PARTS = ("validation", "test")
_PART = flags.DEFINE_string("part", "validation", "Of the data: validation or test.")
_HELP = """Evaluate the newest checkpoint of a run; prints a line of JSON.

    bpfree-eval --workdir=runs/digits
    bpfree-eval --workdir=runs/digits --part=test
"""


def main(argv: list[str]) -> None:
    keep_compiled()
    with command_line.in_a_line("bpfree-eval"):
        print(json.dumps(evaluate(command_line.WORKDIR.value, _PART.value)))


def parse(argv: list[str]) -> list[str]:
    with command_line.in_a_line("bpfree-eval"):
        rest = command_line.parse(argv, _HELP, __name__, takes_config=False)
        if rest:
            raise ConfigError(f"arguments are flags (--name=value), not {rest}")
        if _PART.value not in _PARTS:
            raise ConfigError(f"--part={_PART.value} is none of {', '.join(_PARTS)}")
    return argv[:1]


def run() -> None:
    """The console script `bpfree-eval`."""
    jax.config.config_with_absl()
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
