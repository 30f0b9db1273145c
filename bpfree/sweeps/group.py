"""Points that differ only in numbers, and what their program takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bpfree.data import Dataset, Examples
from bpfree.sweeps import points
from bpfree.training import config, job, steps
from bpfree.training.names import ConfigError
from bpfree.training.steps import TrainState

STACKED = TrainState(step=None, params=0, model_state=0, opt_state=0)  # type: ignore
"""Axes of the points: they do the same steps."""


class Group(NamedTuple):
    """A program of several points.

    Attributes:
      settings: of the first point.
      numbers: {path: (P,)}, where the points differ.
      data: of all of them.
      size: points, P.
    """

    settings: config.Settings
    numbers: dict[str, np.ndarray]
    data: Dataset
    size: int

    def draft(self, numbers: dict[str, Any]) -> job.Draft:
        """The job of one point, with its numbers traced."""
        s = self.settings
        values = {"seed": s.seed, "chain": list(s.chain), **s.sections}
        sections = points.replaced(values, numbers)
        own = {name: sections.pop(name) for name in ("seed", "chain")}
        return job.draft(s._replace(**own, sections=sections), self.data)

    def begin(self, numbers: dict[str, Any]) -> TrainState:
        """The first state of one point; traceable."""
        made = self.draft(numbers)
        return steps.init_state(made.task, *made.init(made.task.keys.init))


def make_group(configs: Sequence[Any]) -> Group:
    """The group of configs (JSON) that `points.groups` put together.

    Raises ConfigError: a number that the constructors cannot take as an argument, or data
    that do not lie on the device.
    """
    settings = config.read(configs[0])
    data = job.load(settings)
    if isinstance(data.train, Examples) or settings.diagnostics.every or settings.mesh:
        raise ConfigError("Grain, diagnostics and a mesh: one run at a time")
    made = {path: _as_array(v) for path, v in points.varied(configs).items()}
    group = Group(settings, made, data, len(configs))
    try:
        jax.eval_shape(jax.vmap(group.begin, out_axes=STACKED), made)
    except (ConfigError, TypeError) as error:
        what = f"one program cannot take {', '.join(made)} as arguments"
        raise ConfigError(what) from error
    return group


def _as_array(values: list[Any]) -> np.ndarray:
    if not all(isinstance(v, int) for v in values):
        return np.asarray(values, np.float32)
    if not all(0 <= v < 2**31 for v in values):
        raise ConfigError("seeds of one program are numbers of 31 bits")
    return np.asarray(values, np.int32)


def complaint(made: Any, data: Dataset) -> str | None:
    """What the constructors say against a point's own numbers (its config); or None."""
    try:
        job.draft(config.read(made), data)
    except ConfigError as error:
        return str(error)
    return None
