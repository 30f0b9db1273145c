"""What the console scripts share: flags, help, and mistakes in one line."""

import ast
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bpfree.data.raw import DataError
from bpfree.training import config_files
from bpfree.training.interrupt import Interrupted
from bpfree.training.loop import TrainingFault
from bpfree.training.names import ConfigError
from bpfree.training.workdir import WorkdirError

WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string(
    "workdir", None, "Where the run is kept and resumed."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of every error.")
_COMMON = (
    ("config", "A config's name (--list), or its file: mine.py, mine.py:argument."),
    ("config.entry", "Overrides an entry of the config."),
    ("config.model", "One by name, or your own: ./mine.py:Model."),
    ("config.data", "One by name, or your own: ./mine.py:load, ./mine.npz."),
    ("config.estimator", "One by name, or your own: ./mine.py:estimator."),
    ("config.loss", "cross_entropy, squared_error, ... or your own: ./mine.py:loss."),
    ("config.metrics", "accuracy, absolute_error, ... or your own: ./mine.py:metric."),
)


@contextlib.contextmanager
def in_a_line(command: str) -> Iterator[None]:
    """Tells mistakes of the user in one line and exits with 1; --debug has the traceback.

    Ctrl-C and SIGTERM end with status 128 + the signal's number.
    """
    try:
        yield
    except Interrupted as error:
        _leave(command, str(error), error.signum)
    except KeyboardInterrupt:
        _leave(command, "SIGINT: stopped; nothing was lost", signal.SIGINT)
    except DataError as error:  # has a line for each thing that can be done
        _exit(command, str(error))
    except (ConfigError, TrainingFault, WorkdirError, flags.Error) as error:
        _exit(command, " ".join(str(error).split()))


def _exit(command: str, text: str) -> None:
    if "--debug" in sys.argv:
        raise
    sys.exit(f"{command}: {text}")


def _leave(command: str, text: str, signum: int) -> None:
    """End at once: a compilation that is under way would be waited for."""
    print(f"{command}: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signum)


def run(
    command: str,
    main: Callable[[list[str]], None],
    text: str,
    module: str,
    *,
    takes_config: bool = True,
    words: Sequence[str] = (),
) -> None:
    """A console script: parse the flags, call `main(words)`; mistakes in a line each.

    Args:
      command: its name.
      text, module, takes_config: as in `parse`. A config must then be given, unless
        there is a word.
      words: arguments that are no flags; at most one of them may be given.
    """

    def parse_or_refuse(argv):
        with in_a_line(command):
            rest = parse(argv, text, module, takes_config)
            if rest and (len(rest) > 1 or rest[0] not in words):
                also = "".join(f" or {word!r}" for word in words)
                raise ConfigError(f"arguments are flags (--name=value){also}, not {rest}")
            if takes_config and not rest and "config" not in flags.FLAGS:
                raise ConfigError(
                    "--config is missing: bpfree-train --list shows the choices"
                )
        return [argv[0], *rest]

    def main_in_a_line(argv):
        with in_a_line(command):
            main(argv[1:])

    app.run(main_in_a_line, flags_parser=parse_or_refuse)


def parse(
    argv: Sequence[str], text: str, module: str, takes_config: bool = True
) -> list[str]:
    """Parse the command line; the arguments that are no flags.

    The flag `config` is defined if --config is given; its value is a ConfigDict with the
    overrides in it.

    Args:
      text: purpose and examples, for --help.
      module: whose flags --help shows, next to ours.
      takes_config: whether --config may be given.

    Raises ConfigError, or absl's flags.Error.
    """
    if {"--help", "-h", "--helpshort", "-help"} & set(argv):
        print(_help(text, module, _COMMON if takes_config else ()))
        sys.exit()
    config_files.look_here()
    given, others = split(argv)
    if given and not takes_config:
        raise ConfigError("--config is not taken: the run in --workdir has its own")
    if given:
        others = _define(given, others)
    rest = flags.FLAGS(others)
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # at info Orbax says very much
    writes = "compile_for" not in flags.FLAGS or flags.FLAGS.compile_for is None
    if WORKDIR.value is None and writes:
        raise ConfigError("--workdir is missing: say where the run is to be kept")
    if given:
        config_files.absolute(flags.FLAGS["config"].value, Path.cwd())
    return rest[1:]


def config() -> Any:
    """What --config gives, with the overrides in it, after `parse`."""
    return flags.FLAGS["config"].value


def split(argv: Sequence[str]) -> tuple[str, list[str]]:
    """What --config says, or "", and the command line without it; raises ConfigError."""
    given: list[str] = []
    others: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        found = re.fullmatch("--?config(?:=(.*))?", argument)
        if found is None:
            others.append(argument)
        else:
            given.append(next(arguments, "") if found[1] is None else found[1])
    if len(given) > 1:
        raise ConfigError(f"--config is given {len(given)} times: {', '.join(given)}")
    return "".join(given), others


def _define(given: str, argv: Sequence[str]) -> list[str]:
    """Define the flag; the arguments that are left for absl."""
    config = config_files.load(given).config()
    argv = named(config, argv)
    for argument in argv:
        found = re.match(r"--?config\.([\w.]+)", argument)
        if found is not None:
            config_files.located(config, found[1])
    try:
        config_flags.DEFINE_config_dict("config", config, sys_argv=list(argv))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"an override of --config: {error}") from error
    return argv


def named(config: ConfigDict, argv: Sequence[str]) -> list[str]:
    """Put in what is given by name: --config.model=./mine.py:Model, and the like.

    Such a section has the entries that the command line gives it, and nothing of what the
    config says there. An estimator becomes the first link of the chain. Returns the
    arguments that are left.
    """
    pattern = r"--?config\.(data|model|estimator|loss|metrics)(?:\.(\w+))?=(.*)"
    found = [re.fullmatch(pattern, argument, re.DOTALL) for argument in argv]
    names = {m[1]: m[3] for m in found if m and m[2] is None}
    with config.unlocked():
        for section, name in names.items():
            entries = {
                m[2]: _literal(m[3]) for m in found if m and m[1] == section and m[2]
            }
            if section == "estimator":
                config.chain = ((name, section), *config.get("chain", ())[1:])
                config.estimator = ConfigDict(entries)
            else:
                if section in config:
                    del config[section]  # a name, maybe, where a section comes
                config[section] = ConfigDict({"name": name, **entries})
    return [a for a, m in zip(argv, found, strict=True) if not m or m[1] not in names]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _help(text: str, module: str, common: Iterable[tuple[str, str]]) -> str:
    by_module = flags.FLAGS.flags_by_module_dict()
    ours = [f for name in (__name__, module) for f in by_module.get(name, ())]
    rows = [*common, *((f.name, f.help) for f in ours)]
    lines = [f"  --{name:18} {what}" for name, what in rows]
    return "\n".join([text, *lines, "  --jax_...            JAX's own options."])
