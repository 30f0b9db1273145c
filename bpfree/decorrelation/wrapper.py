"""Decorrelation as a wrapper around an optimiser: the model stays as it is.

For a kernel A (G, O, d) with inputs z, and R the rule's matrix for it,

    g_W = g_A R^T          what the inner optimiser sees in place of g_A
    A'  = W' R'            if the rule is folded: W is the inner optimiser's, R moves
    A'  = A + u R          if not: the function stays where it is when R moves

so any estimator can feed it, and evaluation and export need nothing.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpfree import program as _program
from bpfree.decorrelation import direct, inputs, rules
from bpfree.decorrelation.inputs import Structure, leaves
from bpfree.decorrelation.layout import Layout
from bpfree.decorrelation.moments import product
from bpfree.decorrelation.rules import Rule

RULES: dict[str, Callable[[], Rule]] = {
    "copi": rules.copi,
    "dbp": rules.dbp,
    "gain": rules.gain,
    "whiten": direct.whiten,
    "foof": direct.foof,
}
Layers = Callable[[str], bool] | Collection[str] | None


class DecorrelationState(NamedTuple):
    """State of `decorrelate`.

    Attributes:
      count: updates done, int32 ().
      inner: state of the inner optimiser.
      layers: {path of a kernel: state of its rule}; `.matrix` is R (G, d, d).
      weights: {path: W}, shaped like the kernel; {} for rules that are not folded.
      marks: {path: A v (G, O)} for a fixed vector v: how A was left; {} likewise.
      edited: the first step that found a kernel changed by others, int32 (), or -1.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name; shadows tuple.count
    inner: Any
    layers: dict[str, Any]
    weights: dict[str, jax.Array]
    marks: dict[str, jax.Array]
    edited: jax.Array

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """{"decorrelation/<path>": mean squared correlation of the layer's inputs, as
        the rule leaves them, at its last move}."""
        return {
            f"decorrelation/{p}": s.loss.astype(jnp.float32)
            for p, s in self.layers.items()
        }


def decorrelate(
    inner: optax.GradientTransformation,
    loss_fn: _program.LossFn,
    *,
    example_batch: Any,
    rule: str | Rule = "foof",
    layers: Layers = None,
    every: int = 10,
    until: int | None = None,
    fraction: float = 1.0,
    cap: int = 512,
    block: int | None = 1024,
    channel_only: bool = False,
    shared: Sequence[str] = ("state",),
) -> optax.GradientTransformationExtraArgs:
    """`inner`, working on decorrelated inputs of each kernel. Last in a chain.

    Kernels are the parameters of matrix products and convolutions, found in the program
    of `loss_fn`; biases, norms and embeddings go to `inner` as they are. Statistics come
    from one more forward pass, on a part of the batch, at every move of R; R starts at
    the identity and moves behind the update, so the first step is `inner`'s.

    With `bpfree.backprop` in front this is decorrelated backpropagation (DBP), with
    `node_perturbation`, `iterative_node_perturbation` and `activity_node_perturbation`
    DNP, DINP and DANP.

    Args:
      inner: any optax optimiser; the learning rate belongs to it.
      loss_fn: `(params, batch[, key]) -> losses`, the objective of the estimator.
      example_batch: a batch, or ShapeDtypeStructs of one.
      rule: a name of `RULES`, or a rule of `bpfree.decorrelation` with its options.
      layers: predicate on paths of kernels ("Dense_0/kernel"), or a collection of them;
        None: all. `bpfree.decorrelation.find_layers` lists them.
      every: steps between two moves of R.
      until: number of steps after which R stays.
      fraction: share of the batch's examples in the extra pass, evenly spaced. For a loss
        function with one loss for the whole batch all of them take part.
      cap: the most rows (examples x positions) that a product contributes to a move.
      block: the largest R; a wider kernel gets several, each for a part of its input
        channels. None: no limit.
      channel_only: one R (C, C) for all positions of a convolution's window.
      shared: keys of the batch that hold no examples (a model's state).

    Returns:
      An optax transformation; pass `batch=` to `update`. Its state is a
      `DecorrelationState`; metrics are in `bpfree.metrics`.

    Raises:
      ValueError: bad options; `layers` naming no kernel; when traced, no batch or params.
    """
    _check(every, until, fraction, cap, block)
    chosen = _rule(rule)
    inner = optax.with_extra_args_support(inner)
    structure = Structure(block, channel_only)

    def layouts(params) -> dict[str, Layout]:
        return _chosen_layers(loss_fn, params, example_batch, structure, layers)

    def init(params) -> DecorrelationState:
        _refuse_masked(params)
        kernels, found = leaves(params), layouts(params)
        states = {
            p: chosen.init(v.sizes[0], v.sizes[2], _precise(kernels[p]))
            for p, v in found.items()
        }
        kept = {p: kernels[p] for p in found} if chosen.folded else {}
        return DecorrelationState(
            count=jnp.zeros((), jnp.int32),
            inner=inner.init(params),
            layers=states,
            weights={p: jnp.array(v, _precise(v)) for p, v in kept.items()},
            marks={p: _mark(found[p].matrices(jnp.asarray(v))) for p, v in kept.items()},
            edited=jnp.full((), -1, jnp.int32),
        )

    def moved(state: DecorrelationState, params, batch, found) -> dict[str, Any]:
        def move():
            key = jax.random.fold_in(jax.random.key(0), state.count)
            part = _part(loss_fn, params, batch, fraction, shared)
            rows = inputs.record(loss_fn, params, part, key, cap, found)
            return {
                p: chosen.move(s, rows[p].astype(s.matrix.dtype))
                for p, s in state.layers.items()
            }

        if every == 1 and until is None:
            return move()
        due = state.count % every == 0
        if until is not None:
            due &= state.count < until
        return lax.cond(due, move, lambda: state.layers)

    def update(updates, state, params=None, *, batch=None, **extra):
        if params is None:
            raise ValueError("decorrelate needs params: update(updates, state, params)")
        if batch is None:
            raise ValueError("decorrelate needs a batch: update(..., batch=batch)")
        found, before = layouts(params), state.layers
        after = moved(state, params, batch, found)
        edited = _edited(state, params, found)

        def gradient(p, g):
            return _through(found[p], chosen.gradient, before[p], g)

        def weight(p, a):
            return state.weights[p].astype(a.dtype) if chosen.folded else a

        seen = _at(params, found, weight)
        updates, inner_state = inner.update(
            _at(updates, found, gradient), state.inner, seen, batch=batch, **extra
        )
        if not chosen.folded:
            out = _at(
                updates,
                found,
                lambda p, u: _through(found[p], chosen.update, before[p], u),
            )
            weights, marks = {}, {}
        else:
            steps = leaves(updates)
            weights = {p: w + steps[p].astype(w.dtype) for p, w in state.weights.items()}
            folded = {
                p: product(found[p].matrices(w), after[p].matrix).astype(steps[p].dtype)
                for p, w in weights.items()
            }
            marks = {p: _mark(a) for p, a in folded.items()}
            kernels = leaves(params)
            out = _at(
                updates, found, lambda p, u: found[p].kernel(folded[p]) - kernels[p]
            )
        count = state.count + 1
        return out, DecorrelationState(count, inner_state, after, weights, marks, edited)

    return optax.GradientTransformationExtraArgs(init, update)


def find_layers(
    loss_fn: _program.LossFn,
    params,
    batch,
    *,
    block: int | None = None,
    channel_only: bool = False,
) -> dict[str, tuple[int, int, int]]:
    """{path: (G, O, d)} of the kernels that `decorrelate` finds, R being (G, d, d).

    Values may be abstract.
    """
    found = inputs.layers(loss_fn, params, batch, Structure(block, channel_only))
    return {path: layout.sizes for path, layout in found.items()}


# ------------------------------------------------------------------- pieces of an update


def _at(tree, paths: Collection[str], fn: Callable[[str, Any], Any]) -> Any:
    """The tree with `fn(path, leaf)` at some of its leaves."""
    changed = [fn(p, leaf) if p in paths else leaf for p, leaf in leaves(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), changed)


def _through(layout: Layout, fn, state, leaf: jax.Array) -> jax.Array:
    matrices = layout.matrices(leaf).astype(state.matrix.dtype)
    return layout.kernel(fn(state, matrices)).astype(leaf.dtype)


def _precise(leaf) -> Any:
    """R and W are float32 at least: their changes are lost in less."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def _part(loss_fn, params, batch, fraction: float, shared: Sequence[str]) -> Any:
    """Evenly spaced examples of the batch."""
    args = _program.arguments(loss_fn, params, batch, jax.random.key(0))
    losses, _ = _program.split_aux(jax.eval_shape(loss_fn, *args))
    size = _program.check_losses(losses, axes=2)
    if size is None or fraction == 1:
        return batch
    kept = max(1, round(fraction * size))
    stride = size // kept

    def cut(leaf):
        whole = jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != size
        return leaf if whole else leaf[: kept * stride : stride]

    if not isinstance(batch, Mapping):
        return jax.tree.map(cut, batch)
    return {k: v if k in shared else jax.tree.map(cut, v) for k, v in batch.items()}


def _mark(matrices: jax.Array) -> jax.Array:
    probe = jax.random.normal(jax.random.key(3), matrices.shape[-1:], _precise(matrices))
    return product(matrices.astype(probe.dtype), probe[:, None])[..., 0]


def _edited(state: DecorrelationState, params, found: dict[str, Layout]) -> jax.Array:
    """`state.edited`, or this step if a kernel is not as it was left."""
    kernels = leaves(params)
    changed = jnp.zeros((), bool)
    for path, mark in state.marks.items():
        matrices = found[path].matrices(kernels[path])
        eps = float(jnp.finfo(matrices.dtype).eps)
        size = jnp.sqrt(jnp.sum(matrices.astype(mark.dtype) ** 2, 2))
        bound = 64 * eps * (size + jnp.abs(mark)) * matrices.shape[2] ** 0.5
        changed |= jnp.any(jnp.abs(_mark(matrices) - mark) > bound)
    return jnp.where((state.edited < 0) & changed, state.count, state.edited)


def states(opt_state: Any) -> list[DecorrelationState]:
    """Every DecorrelationState in an optimiser state."""
    found = jax.tree.leaves(
        opt_state, is_leaf=lambda s: isinstance(s, DecorrelationState)
    )
    return [s for s in found if isinstance(s, DecorrelationState)]


def fault_message(opt_state: Any) -> str | None:
    """What went wrong, in words, or None. Reads one number from the device."""
    for state in states(opt_state):
        if (step := int(state.edited)) >= 0:
            return (
                f"step {step}: a decorrelated kernel is not as `decorrelate` left it, and "
                "its update has undone the change. Kernels are W R, and W is in the "
                "optimiser's state: put `decorrelate` last in the chain, make a new state "
                "with init(params) after changing parameters, or take a rule with "
                "preserve=True."
            )
    return None


# ------------------------------------------------------------------------------ checks


def _rule(rule: str | Rule) -> Rule:
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise ValueError(
            f"rule {rule!r} is unknown; choose one of {sorted(RULES)}, or make one, as "
            "bpfree.decorrelation.dbp(kappa=0.1)"
        )
    return RULES[rule]()


def _check(every, until, fraction, cap, block) -> None:
    optional = [(n, v) for n, v in (("until", until), ("block", block)) if v is not None]
    for name, value in [("every", every), ("cap", cap), *optional]:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive whole number")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} must lie in 0 .. 1, and not be 0")


def _refuse_masked(params) -> None:
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(x, optax.MaskedNode) for x in nodes):
        raise ValueError(
            "decorrelate needs all parameters, but some are masked: put it around "
            "optax.partition or optax.masked, not inside, and choose kernels by layers="
        )


def _chosen_layers(
    loss_fn, params, batch, structure: Structure, layers: Layers
) -> dict[str, Layout]:
    found = inputs.layers(loss_fn, params, batch, structure)
    if layers is None or callable(layers):
        chosen = {p: v for p, v in found.items() if layers is None or layers(p)}
    else:
        names = {layers} if isinstance(layers, str) else set(layers)
        if unknown := names - set(found):
            raise ValueError(
                f"layers={sorted(unknown)} are no kernels; the kernels are {list(found)}"
            )
        chosen = {p: v for p, v in found.items() if p in names}
    if not chosen:
        raise ValueError(
            f"no kernel is left to decorrelate; the loss function has {list(found)}. A "
            "kernel is a parameter that enters a matrix product or a convolution."
        )
    return chosen
