"""What a perturbation estimator is made of, checked."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import optax

from bpfree.choices import BaselineName, Derivative, check_choice
from bpfree.estimators.layerwise import Budget, Schedule, make_schedule
from bpfree.program.trace import LossFn, NodeFilter, Program
from bpfree.sampling import baselines
from bpfree.sampling.baselines import Baseline, Table
from bpfree.sampling.credit import Credit, Segments, check_names
from bpfree.sampling.noise import Plan, antithetic_plan
from bpfree.sampling.scale import Sigma, check_resolution, check_sigma


class Settings(NamedTuple):
    """The arguments of a constructor; see there for the meaning."""

    loss_fn: LossFn
    plan: Plan
    schedule: Schedule
    sigma: Sigma | None
    baseline: Baseline
    nodes: NodeFilter
    noisy: bool = False
    derivative: str = "finite_difference"
    credit: Credit = None
    sigma_optimizer: optax.GradientTransformation | None = None
    hold_statistics: bool = False
    hold_stop_gradient: bool = True


def make_settings(
    loss_fn: LossFn,
    *,
    plan: Plan,
    num_samples: Budget,
    sigma: Sigma | None,
    chunk_size: int | None,
    antithetic: bool,
    nodes: NodeFilter,
    sharding: Any,
    baseline: str | Table | Baseline = "clean",
    layerwise: bool = False,
    own_noise: bool = False,
    **rest: Any,
) -> Settings:
    """Check the arguments of a constructor; raises ValueError with the choices.

    With `own_noise` the system makes noise itself, and sigma may be None. The rest are
    fields of `Settings`; with `noisy` each sample's signals meet its own layer inputs.
    """
    if antithetic:
        plan = antithetic_plan(plan)
    schedule = make_schedule(plan, num_samples, chunk_size, sharding, layerwise)
    compared = find_baseline(baseline)
    made = Settings(loss_fn, plan, schedule, sigma, compared, frozen(nodes), **rest)
    check_choice("derivative", made.derivative, Derivative)
    if made.derivative == "finite_difference" and not (own_noise and sigma is None):
        check_sigma(sigma)
    _check_credit(made.credit)
    if made.sigma_optimizer is not None:
        _check_learned(sigma, made.sigma_optimizer)
    if made.derivative == "jvp" and (compared is not baselines.CLEAN or antithetic):
        raise ValueError(
            "derivative='jvp' measures no losses, so it takes no other baseline than "
            "'clean' and no antithetic pairs"
        )
    if compared.whole:
        check_draws(min(layout.num_draws for layout in schedule.layouts), plan)
    return made


def frozen(nodes: NodeFilter) -> NodeFilter:
    """The filter, for many traces: a generator would serve the first only."""
    if nodes is None or callable(nodes) or isinstance(nodes, str):
        return nodes
    return frozenset(nodes)


def _check_credit(credit: Credit) -> None:
    for rule in credit.values() if isinstance(credit, Mapping) else (credit,):
        if not (rule is None or callable(rule) or isinstance(rule, Segments)):
            raise ValueError(
                f"credit={rule!r} must be a rule, such as bpfree.causal(), or a mapping "
                "from names of nodes to rules"
            )


def _check_learned(sigma: Sigma | None, optimizer) -> None:
    if not hasattr(optimizer, "update"):
        raise ValueError(
            f"sigma_optimizer={optimizer!r} must be an optimiser, such as "
            "optax.adam(1e-3)"
        )
    scales = sigma.values() if isinstance(sigma, Mapping) else (sigma,)
    if any(callable(scale) for scale in scales):
        raise ValueError(
            "a learned sigma starts from a number: a schedule would be read at step 0 "
            "only"
        )


def find_baseline(baseline: str | Table | Baseline) -> Baseline:
    """The baseline of a name, or of a function of the table of all L_k - L_0."""
    if isinstance(baseline, Baseline):
        return baseline
    if callable(baseline):
        return Baseline(baseline)
    check_choice("baseline", baseline, BaselineName)
    return baselines.NAMES[baseline]


def check_draws(count: int, plan: Plan) -> None:
    """ValueError for too few draws for a baseline that takes all losses at once."""
    if count < 2:
        raise ValueError(
            "a baseline that takes the losses of all samples ('leave_one_out') needs at "
            f"least two draws, here num_samples >= {2 * plan.group}"
        )


def check_program(settings: Settings, program: Program) -> None:
    """Raises ValueError for what only a traced loss function can tell."""
    check_names(settings.credit, program.nodes)
    if settings.sigma is not None and settings.derivative == "finite_difference":
        check_resolution(settings.sigma, program)
    if not settings.baseline.across:
        return
    if settings.credit is not None:
        raise ValueError(
            "baseline='batch' takes the other losses as independent of a node's noise, "
            "which they are not where credit= says which of them answer for it"
        )
    shared = [s.name for s in program.nodes if s.batch_axis is None]
    if shared or (program.batch_size or 1) < 2:
        raise ValueError(
            "baseline='batch' compares the examples of a batch: it needs two or more, "
            f"each with noise of its own. Here the batch size is {program.batch_size}, "
            f"and the noise of {shared} is shared by the batch."
        )
