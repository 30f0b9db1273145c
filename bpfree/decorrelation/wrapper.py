"""Decorrelation as a wrapper around an optimiser: the model stays as it is.

For a kernel A (G, O, d) with inputs z, and R the rule's matrix for it,

    g_W = g_A R^T          what the inner optimiser sees in place of g_A
    A'  = W' R'            if the rule is folded: W is the inner optimiser's, R moves
    A'  = A + u R          if not: the function stays where it is when R moves

so any estimator can feed it, and evaluation and export need nothing.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpfree.decorrelation import direct, inputs, rules
from bpfree.decorrelation.inputs import leaves
from bpfree.decorrelation.kernels import chosen_layers
from bpfree.decorrelation.layout import Layout, Structure
from bpfree.decorrelation.moments import product
from bpfree.decorrelation.rule import Rule
from bpfree.decorrelation.state import DecorrelationState, first_edit, mark, precise
from bpfree.estimators.objective import check_loss_fn
from bpfree.estimators.placement import has_masked
from bpfree.program.marking import param_path
from bpfree.program.names import NameFilter
from bpfree.program.trace import LossFn

RULES: dict[str, Callable[[], Rule]] = {
    "copi": rules.copi,
    "dbp": rules.dbp,
    "gain": rules.gain,
    "whiten": direct.whiten,
    "foof": direct.foof,
}
RuleName = Literal["foof", "whiten", "dbp", "copi", "gain"]


def decorrelate(
    inner: optax.GradientTransformation,
    loss_fn: LossFn,
    *,
    example_batch: Any,
    rule: RuleName | Rule = "foof",
    layers: NameFilter = None,
    every: int = 10,
    until: int | None = None,
    fraction: float = 1.0,
    cap: int = 512,
    block: int | None = 256,
    channel_only: bool = False,
    shared: Sequence[str] = ("state",),
) -> optax.GradientTransformationExtraArgs:
    """`inner`, working on decorrelated inputs of each kernel. Last in a chain.

    Kernels are the parameters of matrix products and convolutions, found in the program
    of `loss_fn`; biases, norms and embeddings go to `inner` as they are. Statistics come
    from one more forward pass, on a part of the batch, at every move of R; R starts at
    the identity and moves after the update, so the first step is `inner`'s.

    With `bpfree.backprop` in front this is decorrelated backpropagation (DBP), with
    `node_perturbation`, `iterative_node_perturbation` and `activity_node_perturbation`
    DNP, DINP and DANP.

    Args:
      inner: any optax optimiser; the learning rate belongs to it.
      loss_fn: `(params, batch[, key]) -> losses`, the objective of the estimator.
      example_batch: a batch, or ShapeDtypeStructs of one.
      rule: a name of `RULES`, or a rule of `bpfree.decorrelation` with its options.
      layers: predicate on paths of kernels ("Dense_0/kernel"), or a collection of them
        or of patterns ("Dense_*"); None: all. `bpfree.decorrelation.find_layers` lists
        them.
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

    Example:
        >>> tx = optax.chain(
        ...     bpfree.node_perturbation(loss_fn, num_samples=4),
        ...     bpfree.decorrelate(optax.adam(1e-3), loss_fn, example_batch=batch),
        ... )
        >>> updates, state = tx.update(zeros, tx.init(params), params, batch=batch)
        >>> jax.tree.map(jnp.shape, updates)
        {'w1': (3, 4), 'w2': (4, 2)}
    """
    check_loss_fn(loss_fn)
    _check(every, until, fraction, cap, block)
    chosen = _rule(rule)
    inner = optax.with_extra_args_support(inner)
    structure = Structure(block, channel_only)

    traced: dict[Any, dict[str, Layout]] = {}

    def layouts(params) -> dict[str, Layout]:
        shapes = jax.tree.map(jax.typeof, params)
        key = (jax.tree.structure(shapes), tuple(map(str, jax.tree.leaves(shapes))))
        if key not in traced:
            traced[key] = chosen_layers(loss_fn, params, example_batch, structure, layers)
        return traced[key]

    def init(params) -> DecorrelationState:
        if has_masked(params):
            raise ValueError(
                "decorrelate needs all parameters, but some are masked: put it around "
                "optax.partition or optax.masked, not inside, and choose kernels by "
                "layers="
            )
        kernels, found = leaves(params), layouts(params)
        states = {
            p: chosen.init(v.sizes[0], v.sizes[2], precise(kernels[p]))
            for p, v in found.items()
        }
        kept = {p: kernels[p] for p in found} if chosen.folded else {}
        return DecorrelationState(
            count=jnp.zeros((), jnp.int32),
            inner=inner.init(params),
            layers=states,
            weights={p: jnp.array(v, precise(v)) for p, v in kept.items()},
            marks={p: mark(found[p].matrices(jnp.asarray(v))) for p, v in kept.items()},
            edited=jnp.full((), -1, jnp.int32),
        )

    def moved(state: DecorrelationState, params, batch, found) -> dict[str, Any]:
        def move():
            key = jax.random.fold_in(jax.random.key(0), state.count)
            part = inputs.evenly_spaced(loss_fn, params, batch, fraction, shared)
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
        others = first_edit(state, params, found)

        def by(rule):
            return lambda p, leaf: _through(found[p], rule, before[p], leaf)

        def weight(p, a):
            return state.weights[p].astype(a.dtype) if chosen.folded else a

        seen = _at(params, found, weight)
        updates = _at(updates, found, by(chosen.gradient))
        updates, inner_state = inner.update(
            updates, state.inner, seen, batch=batch, **extra
        )
        if chosen.folded:
            out, weights = _fold(updates, state.weights, after, params, found)
        else:
            out, weights = _at(updates, found, by(chosen.update)), {}
        kernels, steps = leaves(params), leaves(out)
        marks = {p: mark(found[p].matrices(kernels[p] + steps[p])) for p in weights}
        return out, DecorrelationState(
            state.count + 1, inner_state, after, weights, marks, others
        )

    return optax.GradientTransformationExtraArgs(init, update)


# ------------------------------------------------------------------- pieces of an update


def _at(tree, paths: Collection[str], fn: Callable[[str, Any], Any]) -> Any:
    """The tree with `fn(path, leaf)` at some of its leaves."""

    def one(path, leaf):
        return fn(name, leaf) if (name := param_path(path)) in paths else leaf

    return jax.tree.map_with_path(one, tree)


def _through(layout: Layout, fn, state, leaf: jax.Array) -> jax.Array:
    matrices = layout.matrices(leaf).astype(state.matrix.dtype)
    return layout.kernel(fn(state, matrices)).astype(leaf.dtype)


def _fold(updates, weights, states, params, found):
    """(W' R' - A for every kernel, W') for inner updates of W."""
    steps, kernels = leaves(updates), leaves(params)
    weights = {p: w + steps[p].astype(w.dtype) for p, w in weights.items()}

    def to_folded(p, u):
        folded = product(found[p].matrices(weights[p]), states[p].matrix)
        return found[p].kernel(folded).astype(u.dtype) - kernels[p]

    return _at(updates, found, to_folded), weights


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
