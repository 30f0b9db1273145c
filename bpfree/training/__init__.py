"""The launcher: trains a config, `bpfree-train --config=... --workdir=...`.

`fit(config, workdir)` is the whole of it, without the command line; `load(workdir)` reads
back what it trained. Nothing here is needed to use the estimators, and `import bpfree`
does not import it.
"""

from bpfree.training.loop import Result, TrainingFault, fit
from bpfree.training.names import ConfigError
from bpfree.training.trained import Trained, load
from bpfree.training.workdir import WorkdirError

__all__ = [
    "ConfigError",
    "Result",
    "Trained",
    "TrainingFault",
    "WorkdirError",
    "fit",
    "load",
]
