"""A traced loss function, and the ways to run it.

`trace` turns a loss function with marked nodes into a `Program`; `evaluate`, `cut`,
`cut_vjp` and `perturbed` run it. `bpfree.nodes` has the public transformations.
"""

import inspect
import zlib
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpfree import _jaxpr, timewise
from bpfree._conv import inputs_first
from bpfree._jaxpr import MAPPED, Run, Site
from bpfree._partition import rows_merged

NodeTree = dict[str, jax.Array]
LossFn = Callable[..., Any]
NodeFilter = Callable[[str], bool] | Collection[str] | None


class Program(NamedTuple):
    """A traced loss function: its jaxpr, its active nodes, and how to unpack it.

    `held` is empty in a clean pass; in noisy ones it says what stands at the holds.
    `bind` evaluates the equations.
    """

    jaxpr: Any
    consts: Any
    sites: tuple[Site, ...]
    active: frozenset[str]
    out_tree: Any
    batch_size: int | None  # None: one loss for the whole batch
    held: NodeTree = {}
    bind: _jaxpr.Bind = _jaxpr.bind_eqn

    @property
    def nodes(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.name in self.active)

    @property
    def losses(self) -> Any:
        """The aval of the losses."""
        avals = [v.aval for v in self.jaxpr.outvars]
        return split_aux(jax.tree.unflatten(self.out_tree, avals))[0]

    @property
    def has_aux(self) -> bool:
        return not jax.tree_util.treedef_is_leaf(self.out_tree)

    def holding(self, values: NodeTree) -> "Program":
        """The program of the noisy passes, with what `cut` gave in the clean one."""
        holds = [s.name for s in self.sites if s.kind == "hold"]
        return self._replace(held={name: values[name] for name in holds})


def split_aux(out: Any) -> tuple[jax.Array, Any]:
    """(losses, aux) of what a loss function returned; aux is None if it has none."""
    return out if isinstance(out, tuple) and len(out) == 2 else (out, None)


def trace(
    loss_fn: LossFn,
    params,
    batch,
    key=None,
    nodes: NodeFilter = None,
    loss_axes: int = 1,
) -> Program:
    """Trace `loss_fn` and check its nodes; values may be abstract.

    Args:
      loss_fn: `(params, batch[, key]) -> losses` or `(losses, aux)`.
      params, batch, key: arguments, or ShapeDtypeStructs of them.
      nodes: predicate on names, or collection of names. The others are no nodes: what
        they cut becomes part of a larger block.
      loss_axes: 1, or 2 to allow losses (B, T), one for each example and time step.

    Raises:
      ValueError: no nodes, losses not `(B,)` or `()`, a wrong batch axis, names that
        collide, or `nodes` naming none.
    """
    jaxpr, consts, out = read(loss_fn, arguments(loss_fn, params, batch, key))
    losses, _ = split_aux(out)
    batch_size = check_losses(losses, loss_axes)
    sites = _with_names(_jaxpr.find_sites(jaxpr))
    names = [s.name for s in sites if s.kind == "node"]
    active = frozenset(filter(_predicate(nodes, names), names))
    if not active:
        hint = f"`nodes=` keeps none of {names}" if names else "it has none"
        raise ValueError(
            f"the loss function has no nodes to perturb ({hint}). Mark pre-activations "
            "with bpfree.node(x), or build the loss with bpfree.supervised(model, loss)."
        )
    program = Program(jaxpr, consts, sites, active, jax.tree.structure(out), batch_size)
    for site in program.nodes:
        _check_site(site, batch_size)
    _check_hashes(active)
    return program


# ------------------------------------------------------------------------- running it


def site_names(loss_fn: LossFn, params, batch, key=None) -> list[str]:
    """Names of all marks, in program order."""
    jaxpr, _, _ = read(loss_fn, arguments(loss_fn, params, batch, key))
    return [site.name for site in _with_names(_jaxpr.find_sites(jaxpr))]


def read(loss_fn: LossFn, args) -> tuple[Any, Any, Any]:
    """(jaxpr, its constants, shapes of the output)."""
    closed, out = jax.make_jaxpr(loss_fn, return_shape=True)(*args)
    return *_jaxpr.open_jaxpr(closed), out


def evaluate(program: Program, spec: Run, args, deltas: NodeTree | None = None):
    """(output of loss_fn, taps) of one interpretation of the program."""
    flat = jax.tree.leaves(args)
    given = {**program.held, **(deltas or {})}
    outs, taps = _jaxpr.run(
        spec._replace(bind=program.bind),
        program.jaxpr,
        program.consts,
        flat,
        program.sites,
        given,
    )
    return jax.tree.unflatten(program.out_tree, outs), taps


def cut(program: Program, args, deltas: NodeTree | None = None):
    """(output of loss_fn, {node: y}) with no derivative across a node.

    In a clean pass the values at the holds are handed out too. Loops are differentiated
    at all steps at once where the nodes cut one step from the next (`timewise`).
    """
    visit = adding(program, lax.stop_gradient)
    spec = Run(visit, scan=timewise.scan, inner_scan=timewise.scan)
    return evaluate(program, spec, args, deltas)


def cut_vjp(program: Program, args):
    """One clean pass: `(output of loss_fn, {node or hold: y}, pull)`; see `pullback`."""
    differentiated = partial(_of_params, program, args)
    (losses, values), vjp, out = jax.vjp(differentiated, args[0], has_aux=True)
    vjp = inputs_first(vjp)

    def pull(signals: NodeTree):
        return vjp(_cotangents(losses, values, signals))[0]

    return out, values, pull


def cut_vjp_by_rows(program: Program, args, rows: int, spread: Callable):
    """`cut_vjp` whose signals have an axis of `rows` in front, which pull adds up.

    Every device pulls its row of the signals. A gradient is one sum over rows and batch:
    the transpose of a tangent map with rows of what it keeps of the clean pass. Blocks
    with a `custom_vjp` have no such map.

    Args:
      spread: `(function of a tree) -> the same with rows in front`, `sampling.copies`.
    """
    differentiated = partial(_of_params, program, args)
    (losses, values), tangents, out = jax.linearize(differentiated, args[0], has_aux=True)
    jaxpr, kept = _jaxpr.open_jaxpr(jax.make_jaxpr(tangents)(args[0]))
    results = jax.tree.structure((losses, values))

    def by_rows(changes):
        def one(kept):
            leaves = jax.tree.leaves(changes)
            outs = _jaxpr.replay(jaxpr, kept, leaves, _jaxpr.bind_eqn)
            return jax.tree.unflatten(results, outs)

        return spread(one)(kept)

    transposed = jax.linear_transpose(by_rows, args[0])
    if program.batch_size:
        transposed = rows_merged(transposed, rows, program.batch_size)
    transposed = inputs_first(transposed)

    def pull(signals: NodeTree):
        of_row = partial(_cotangents, losses, values)
        behind, given = jax.vmap(of_row, axis_size=rows)(signals)
        return transposed((behind / rows, given))[0]

    return out, values, pull


def _of_params(program: Program, args, params):
    """((losses, values at nodes and holds), output of loss_fn)."""
    out, values = cut(program, (params, *args[1:]))
    return (split_aux(out)[0], values), out


def _cotangents(losses, values: NodeTree, signals: NodeTree):
    """Of the mean loss behind the last node, and of the nodes."""
    given = {
        name: signals[name].astype(y.dtype) if name in signals else jnp.zeros_like(y)
        for name, y in values.items()
    }
    return jnp.full_like(losses, 1 / max(losses.size, 1)), given


def perturbed(
    program: Program, args, moved: Collection[str] | None = None, clean=None
) -> Callable[[NodeTree], jax.Array]:
    """`{node: delta} -> losses`, with all that no moved node reaches computed once, here.

    Args:
      moved: names of the nodes that may get a delta; default all.
      clean: `clean_values` of the same program, for callers that move one node after
        the other: each then evaluates only what stands behind its node.
    """
    run = observed(program, args, moved, clean, tap=False)
    return lambda deltas: run(deltas)[0]


def observed(
    program: Program,
    args,
    moved: Collection[str] | None = None,
    clean: _jaxpr.Known | None = None,
    tap: bool = True,
) -> Callable[[NodeTree], tuple[jax.Array, NodeTree]]:
    """`{node: delta} -> (losses, {moved node: y})`; arguments as in `perturbed`.

    `y` is the value before the node's own delta, downstream of the others.
    """
    names = program.active if moved is None else frozenset(moved)
    known = _known(program, args, names, clean)
    spec = Run(adding(program, tap=tap), known)

    def run(deltas: NodeTree):
        out, values = evaluate(program, spec, args, deltas)
        return split_aux(out)[0], {n: y for n, y in values.items() if n in names}

    return run


def clean_values(program: Program, args) -> _jaxpr.Known:
    """The value of every equation in a clean pass, effects apart."""
    return _known(program, args, frozenset(), None)


def _known(program, args, moved, clean) -> _jaxpr.Known:
    return _jaxpr.prefix(
        program.jaxpr,
        program.consts,
        jax.tree.leaves(args),
        program.sites,
        lambda site: site.name in moved,
        clean,
    )


def adding(program: Program, behind=lambda y: y, tap=True):
    """Visit that adds deltas at the active nodes, and keeps constant what is held.

    A delta is an array, or a `jax.tree_util.Partial` that makes it at the node, of its
    value; in loops the leaves of both have the steps in front.
    """

    def visit(site, y, deltas):
        if site.kind == "hold":
            value = lax.stop_gradient(deltas.get(site.name, y))
            return value, ({} if site.name in deltas or not tap else {site.name: value})
        if site.name not in program.active:
            return y, {}
        value = behind(y)
        if site.name in deltas:
            delta = deltas[site.name]
            value = value + (delta(y) if callable(delta) else delta).astype(y.dtype)
        return value, ({site.name: y} if tap else {})

    return visit


# ------------------------------------------------------------------------------ checks


def takes_key(loss_fn: LossFn) -> bool:
    """Whether the third positional parameter of `loss_fn` is there for a PRNG key.

    It is if it has no default, or the name "key" or "rng".
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(loss_fn).parameters.values()
    third = [p for p in parameters if p.kind in kinds][2:3]
    return any(p.default is p.empty or p.name in ("key", "rng") for p in third)


def arguments(loss_fn: LossFn, params, batch, key) -> tuple:
    if not takes_key(loss_fn):
        return params, batch
    if key is None:
        raise ValueError("this loss function takes a PRNG key: pass key=")
    return params, batch, key


def _predicate(nodes: NodeFilter, names: list[str]) -> Callable[[str], bool]:
    if nodes is None:
        return lambda name: True
    if callable(nodes):
        return nodes
    chosen = {nodes} if isinstance(nodes, str) else set(nodes)
    if unknown := chosen - set(names):
        raise ValueError(f"unknown nodes {sorted(unknown)}; the nodes are {names}")
    return chosen.__contains__


def _with_names(sites: list[Site]) -> tuple[Site, ...]:
    seen: Counter = Counter()
    named = []
    for site in sites:
        name = site.name or f"node_{seen[None]}"
        seen[None] += site.name is None
        calls = seen[site.kind, name]
        seen[site.kind, name] += 1
        named.append(site._replace(name=f"{name}#{calls}" if calls else name))
    for name, count in Counter(site.name for site in named).items():
        if count > 1:
            raise ValueError(
                f"two marks have the name {name!r} (repeated names are numbered #1, #2, "
                "..., and all kinds of marks share their names): rename one of them."
            )
    return tuple(named)


def check_losses(losses, axes: int = 1) -> int | None:
    shape = getattr(losses, "shape", None)
    if shape is None or len(shape) > axes:
        raise ValueError(
            f"the loss function must return losses of shape (B,), one per example, or () "
            f"for one experiment per batch, or (losses, aux); got {losses}. Reduce each "
            "example's loss to a number, and check that no (B, 1) met a (B,). Losses "
            "(B, T), one for each time step, need an estimator with credit= "
            "(bpfree.causal)."
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"losses must be floating point, got {losses.dtype}")
    if 0 in shape:
        raise ValueError("the batch is empty: the loss function returned no losses")
    return shape[0] if shape else None


def _check_site(site: Site, batch_size: int | None) -> None:
    axis = site.batch_axis
    if axis == MAPPED:
        raise ValueError(
            f"node {site.name!r} says batch_axis=MAPPED but no vmap maps it; pass the "
            "number of its batch axis."
        )
    if batch_size is None or axis is None or site.shape[axis] == batch_size:
        return
    raise ValueError(
        f"node {site.name!r} has shape {site.shape}, whose batch axis {axis} is not the "
        f"batch of {batch_size} losses. Pass batch_axis= to bpfree.node, or None for a "
        "value shared by the batch."
    )


def name_hash(name: str) -> int:
    """crc32 of a node's name: folded into the sample's key, it keys the node's noise."""
    return zlib.crc32(name.encode())


def _check_hashes(names: Collection[str]) -> None:
    by_hash: dict[int, str] = {}
    for name in sorted(names):
        other = by_hash.setdefault(name_hash(name), name)
        if other != name:
            raise ValueError(
                f"nodes {other!r} and {name!r} have the same crc32, so they would get "
                "the same noise: rename one of them."
            )
