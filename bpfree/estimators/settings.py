"""What a perturbation estimator is made of, checked."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from bpfree import credit as _rules
from bpfree import program as _program
from bpfree import sampling
from bpfree.estimators import layerwise as _layerwise
from bpfree.estimators import sigma as _sigma
from bpfree.estimators.derivative import DERIVATIVES
from bpfree.estimators.sigma import Sigma

BASELINES = ("clean", "leave_one_out", "batch", "none")
PAIRINGS = ("clean", "noisy")
Credit = _rules.Rule | Mapping[str, _rules.Rule] | None
Encode = Callable[[jax.Array], jax.Array] | None


class Settings(NamedTuple):
    """The arguments of a constructor; see there for the meaning.

    `encode_weights` and `encode_signals` replace the centred losses, and the signals of
    the clean pairing, by a code of fewer bits.
    """

    loss_fn: _program.LossFn
    plan: sampling.Plan
    schedule: _layerwise.Schedule
    sigma: Sigma | None
    baseline: str
    pairing: str
    nodes: _program.NodeFilter
    derivative: str
    credit: Credit
    sigma_optimizer: optax.GradientTransformation | None
    encode_weights: Encode
    encode_signals: Encode


def make_settings(
    loss_fn: _program.LossFn,
    *,
    plan: sampling.Plan,
    num_samples: _layerwise.Budget,
    sigma: Sigma | None,
    chunk_size: int | None,
    antithetic: bool,
    baseline: str,
    pairing: str,
    nodes: _program.NodeFilter,
    sharding: Any,
    layerwise: bool = False,
    derivative: str = "finite_difference",
    credit: Credit = None,
    sigma_optimizer: optax.GradientTransformation | None = None,
    encode_weights: Encode = None,
    encode_signals: Encode = None,
) -> Settings:
    """Check the arguments of a constructor; raises ValueError with the choices."""
    check_choice("baseline", baseline, BASELINES)
    check_choice("pairing", pairing, PAIRINGS)
    check_choice("derivative", derivative, DERIVATIVES)
    if sigma is not None:
        _sigma.check(sigma)
    if antithetic:
        plan = sampling.antithetic(plan)
    if pairing == "noisy" and plan.score is None:
        raise ValueError(
            "pairing='noisy' needs noise with a density, whose score it uses; Rademacher "
            "signs have none. Use noise='gaussian' or pairing='clean'."
        )
    measured = (baseline, pairing, antithetic) != ("clean", "clean", False)
    if derivative == "jvp" and measured:
        raise ValueError(
            "derivative='jvp' measures no losses, so it takes no other baseline than "
            "'clean' and no antithetic pairs; and it is taken at the clean values, so "
            "pairing='clean'"
        )
    schedule = _layerwise.make_schedule(
        plan, num_samples, chunk_size, sharding, layerwise
    )
    fewest = min(layout.num_draws for layout in schedule.layouts)
    if baseline == "leave_one_out" and fewest < 2:
        raise ValueError(
            "baseline='leave_one_out' needs at least two draws, here "
            f"num_samples >= {2 * plan.group}"
        )
    if not (nodes is None or callable(nodes) or isinstance(nodes, str)):
        nodes = frozenset(nodes)  # a generator would serve the first trace only
    return Settings(
        loss_fn,
        plan,
        schedule,
        sigma,
        baseline,
        pairing,
        nodes,
        derivative,
        credit,
        sigma_optimizer,
        encode_weights,
        encode_signals,
    )


def check_choice(what: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{what}={value!r} is unknown; choose one of {choices}")


def check_program(settings: Settings, program: _program.Program) -> None:
    """Raises ValueError for what only a traced loss function can tell."""
    _rules.check_names(settings.credit, program.nodes)
    if settings.sigma is not None and settings.derivative == "finite_difference":
        _sigma.check_resolution(settings.sigma, program)
    if settings.baseline != "batch":
        return
    shared = [s.name for s in program.nodes if s.batch_axis is None]
    if shared or (program.batch_size or 1) < 2:
        raise ValueError(
            "baseline='batch' compares the examples of a batch: it needs two or more, "
            f"each with noise of its own. Here the batch size is {program.batch_size}, "
            f"and the noise of {shared} is shared by the batch."
        )
