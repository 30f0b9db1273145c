"""Optax chains written as plain values.

A chain is a list of (name, kwargs) pairs, for instance

    (("likelihood_ratio", "estimator"),
     ("clip_by_global_norm", {"max_norm": 1.0}),
     ("adam", {"learning_rate": ("cosine_decay_schedule", "schedule")}))

Names are looked up in `bpfree`, then in `optax` ("contrib.muon" works too); a name such
as "./mine.py:function" is one of the user's own, see `training/own.py`. kwargs is a
dict, or the name of a section of the config that holds it, so that flags can reach it. A
pair inside kwargs is made first; `("chain", [pair, pair])` is a chain inside a chain.
Constructors with a parameter `loss_fn`, or with `energy` as their first, get the
objective, those with `example_batch` a batch; the estimators' `seed` is the run's unless
kwargs says otherwise.
"""

import inspect
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
import optax.contrib
from jax.sharding import NamedSharding

import bpfree
from bpfree.estimators.base import EstimatorTransformation
from bpfree.training import own
from bpfree.training.names import ConfigError, call, config_errors, unknown

Sections = Mapping[str, Mapping[str, Any]]


class Chain(NamedTuple):
    """A chain, the noisy passes of the batch in one update of it, and its first link."""

    transformation: optax.GradientTransformationExtraArgs
    num_samples: int
    estimator: EstimatorTransformation


class _Context(NamedTuple):
    sections: Sections
    loss_fn: Callable[..., Any]
    seed: Any
    example_batch: Any
    sharding: NamedSharding | None
    counts: list[int]  # num_samples of the estimators made so far


def build(
    links: Sequence[Any],
    sections: Sections,
    loss_fn: Callable[..., Any],
    seed: Any,
    example_batch: Any = None,
    sharding: NamedSharding | None = None,
) -> Chain:
    """Make the chain of a config.

    Args:
      links: (name, kwargs) pairs.
      sections: {name: kwargs} that links may name.
      loss_fn: the objective, `(params, batch) -> losses (B,)` or `(losses, aux)`.
      seed: int or PRNG key of the estimators.
      example_batch: a batch or its shapes; needed if loss_fn returns aux.
      sharding: spreads the samples of the estimators over devices.

    Raises ConfigError naming the link and the choices.
    """
    context = _Context(sections, loss_fn, seed, example_batch, sharding, [])
    made = [_link(i, link, context) for i, link in enumerate(links)]
    if not any(isinstance(t, EstimatorTransformation) for t in made[:1]):
        raise ConfigError(
            "config.chain must begin with an estimator, which makes the gradient; choose "
            f"one of {', '.join(_estimators())}"
        )
    for i, link in enumerate(made[1:], 1):
        if isinstance(link, EstimatorTransformation):
            raise ConfigError(
                f"config.chain[{i}]: {links[i][0]!r} would add a second gradient to that "
                f"of {links[0][0]!r}: one estimator is enough, or bpfree.combine"
            )
    num_samples = sum(context.counts)
    if sharding is not None and not num_samples:
        raise ConfigError(
            f"{links[0][0]!r} has no samples to spread over the axis 'sample' of "
            "config.mesh; use the axis 'data' alone"
        )
    return Chain(optax.chain(*made), num_samples, made[0])


def _link(position: int, link: Any, context: _Context) -> Any:
    where = f"config.chain[{position}]"
    if not _is_pair(link, context):
        raise ConfigError(
            f"{where}={link!r} must be a pair (name, kwargs); kwargs is a dict, "
            "or the name of a section of the config (here: "
            f"{', '.join(sorted(context.sections)) or 'none'})"
        )
    made = _make(link, context, where)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise ConfigError(
            f"{where}: {link[0]!r} makes a {type(made).__name__}, not a gradient "
            f"transformation. The choices are: {', '.join(_links())}"
        )
    return made


def _make(pair: Any, context: _Context, where: str) -> Any:
    name, kwargs = pair
    where = f"{where} ({name!r})"
    constructor = find(name, where)
    if isinstance(kwargs, (list, tuple)):
        return constructor(*_resolve(list(kwargs), context, where))
    if isinstance(kwargs, str):
        kwargs = context.sections[kwargs]
    kwargs = {k: _resolve(v, context, f"{where}.{k}") for k, v in kwargs.items()}
    parameters = _parameters(constructor)
    known = {"loss_fn": context.loss_fn, "example_batch": context.example_batch}
    if next(iter(parameters), "") == "energy":
        known["energy"] = context.loss_fn
    # Those of bpfree and of the user get the seed of the run, those of optax do not.
    theirs = constructor.__module__.partition(".")[0] == "optax"
    estimates = "seed" in parameters and not theirs
    if estimates and "seed" not in kwargs:
        known["seed"] = context.seed
    if estimates and context.sharding is not None:
        known["sharding"] = context.sharding
    given = {key: value for key, value in known.items() if key in parameters}
    made = call(constructor, kwargs, where, given)
    if estimates and "num_samples" in parameters:
        count = kwargs.get("num_samples", parameters["num_samples"].default)
        context.counts.append(
            sum(count.values()) if isinstance(count, Mapping) else count
        )
    return made


def _resolve(value: Any, context: _Context, where: str) -> Any:
    if _is_pair(value, context):
        return _make(value, context, where)
    if isinstance(value, Mapping):
        return {k: _resolve(v, context, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_resolve(v, context, f"{where}[{i}]") for i, v in enumerate(value)]
        return type(value)(items)
    return value


def _is_pair(value: Any, context: _Context) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    name, kwargs = value
    if not isinstance(name, str):
        return False
    if isinstance(kwargs, (list, tuple)):
        taken = _parameters(getattr(optax, name, None)).values()
        return any(p.kind is p.VAR_POSITIONAL for p in taken)  # as of optax.chain
    section = isinstance(kwargs, str) and kwargs in context.sections
    return section or isinstance(kwargs, Mapping)


# ------------------------------------------------------------------------------- names


def find(name: str, where: str) -> Callable[..., Any]:
    """The public callable `name` of bpfree, else of optax; or one of the user's own."""
    if own.is_own(name):
        return own.find(name, where)
    for module in (bpfree, optax):
        try:
            found = operator.attrgetter(name)(module)
        except AttributeError:
            continue
        private = any(part.startswith("_") for part in name.split("."))
        if callable(found) and not private:
            return found
    schedules = [n for n, _ in _public(optax) if n.endswith("schedule")]
    raise unknown(f"{where}: constructor", name, _links() + schedules)


def _links() -> list[str]:
    results = {n: inspect.signature(f).return_annotation for n, f in _public(optax)}
    named = {n: getattr(kind, "__name__", kind) for n, kind in results.items()}
    made = [n for n, kind in named.items() if "GradientTransformation" in str(kind)]
    return sorted({"decorrelate", *_estimators(), *made})


def _estimators() -> list[str]:
    """The constructors of bpfree that take a seed."""
    return [n for n, f in _public(bpfree) if "seed" in _parameters(f)]


def _public(module: types.ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    members = inspect.getmembers(module, inspect.isfunction)
    return [(name, member) for name, member in members if not name.startswith("_")]


def _parameters(constructor: Any) -> Mapping[str, inspect.Parameter]:
    """By name; none of what has no signature."""
    try:
        return inspect.signature(constructor).parameters
    except (TypeError, ValueError):
        return {}


def check(chain: Chain, params: Any, batch: Any) -> None:
    """Trace one update, so that what a link refuses shows before compilation."""
    transformation = chain.transformation

    def one_update(params, batch):
        state = transformation.init(params)
        zeros = optax.tree.zeros_like(params)
        return transformation.update(zeros, state, params, batch=batch)

    with config_errors("config.chain does not run on this model and data"):
        updates, _ = jax.eval_shape(one_update, params, batch)
    found, expected = (str(jax.tree.structure(t)) for t in (updates, params))
    if found != expected:
        raise ConfigError("config.chain returns updates of another structure than params")
