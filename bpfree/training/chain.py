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
from bpfree.training.names import ConfigError, call, unknown

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
    context = _Context(sections, loss_fn, seed, example_batch, sharding)
    made = [_link(i, link, context) for i, link in enumerate(links)]
    if not any(isinstance(t, EstimatorTransformation) for t in made[:1]):
        raise ConfigError(
            "config.chain must begin with an estimator, which makes the gradient; choose "
            f"one of {', '.join(e.__name__ for e in _estimators())}"
        )
    num_samples = _num_samples(links, context)
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
    given: dict[str, Any] = {}
    parameters = _parameters(constructor)
    if "loss_fn" in parameters:
        given["loss_fn"] = context.loss_fn
    elif parameters[:1] == ["energy"]:
        given["energy"] = context.loss_fn
    if _is_estimator(constructor) and "seed" not in kwargs:
        given["seed"] = context.seed
    if "example_batch" in parameters:
        given["example_batch"] = context.example_batch
    if _is_estimator(constructor) and context.sharding is not None:
        spread: dict[str, Any] = {"sharding": context.sharding}
        given |= spread if "sharding" in parameters else {}
    return call(constructor, kwargs, where, given)


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
        return _is_variadic(name)
    section = isinstance(kwargs, str) and kwargs in context.sections
    return section or isinstance(kwargs, Mapping)


def _is_variadic(name: str) -> bool:
    """Whether `name` takes its arguments by position, as `optax.chain` does."""
    found = getattr(optax, name, None)
    try:
        parameters = inspect.signature(found).parameters.values() if found else ()
    except (TypeError, ValueError):
        return False
    return any(p.kind is p.VAR_POSITIONAL for p in parameters)


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
    raise unknown(f"{where}: constructor", name, _links() + _schedules())


def _links() -> list[str]:
    made = [n for n in _public(optax) if "GradientTransformation" in _result(optax, n)]
    return sorted({e.__name__ for e in _estimators()} | {"decorrelate", *made})


def _schedules() -> list[str]:
    return [n for n in _public(optax) if n.endswith("schedule")]


def _public(module: types.ModuleType) -> list[str]:
    members = {n: m for n, m in vars(module).items() if not n.startswith("_")}
    return sorted(n for n, m in members.items() if inspect.isfunction(m))


def _result(module: types.ModuleType, name: str) -> str:
    annotation = inspect.signature(getattr(module, name)).return_annotation
    return str(getattr(annotation, "__name__", annotation))


def _parameters(constructor: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(constructor).parameters)
    except (TypeError, ValueError):
        return []


def _is_estimator(constructor: Callable[..., Any]) -> bool:
    """Whether it takes the run's seed: those of bpfree and of the user, not of optax."""
    theirs = constructor.__module__.partition(".")[0] == "optax"
    return "seed" in _parameters(constructor) and not theirs


def _estimators() -> list[Callable[..., Any]]:
    """The constructors of bpfree that take a seed."""
    found = [getattr(bpfree, name) for name in _public(bpfree)]
    return [f for f in found if "seed" in _parameters(f)]


def _num_samples(value: Any, context: _Context) -> int:
    """Sum of `num_samples` over the estimators written in a value."""
    if _is_pair(value, context):
        name, kwargs = value
        kwargs = context.sections[kwargs] if isinstance(kwargs, str) else kwargs
        inner = _num_samples(kwargs, context)
        constructor = find(name, "config.chain")
        if _is_estimator(constructor) and "num_samples" in _parameters(constructor):
            default = inspect.signature(constructor).parameters["num_samples"].default
            count = kwargs.get("num_samples", default)
            return inner + (sum(count.values()) if isinstance(count, Mapping) else count)
        return inner
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(_num_samples(v, context) for v in value)
    return 0


def check(chain: Chain, params: Any, batch: Any) -> None:
    """Trace one update, so that what a link refuses shows before compilation."""
    transformation = chain.transformation

    def one_update(params, batch):
        state = transformation.init(params)
        zeros = optax.tree.zeros_like(params)
        return transformation.update(zeros, state, params, batch=batch)

    try:
        updates, _ = jax.eval_shape(one_update, params, batch)
    except Exception as error:
        kind = type(error).__name__
        raise ConfigError(
            f"config.chain does not run on this model and data: {kind}: {error}"
        ) from error
    found, expected = (str(jax.tree.structure(t)) for t in (updates, params))
    if found != expected:
        raise ConfigError("config.chain returns updates of another structure than params")
