"""A traced loss function, and what is checked of it.

`trace` turns a loss function with marked nodes into a `Program`; `passes` runs it.
"""

import inspect
import zlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.program import rewriting, tags
from bpfree.program.collectives import as_reductions
from bpfree.program.identities import as_lines
from bpfree.program.marking import with_nodes
from bpfree.program.names import NameFilter, chosen_names, numbered
from bpfree.program.tags import Site

NodeTree = dict[str, jax.Array]
LossFn = Callable[..., Any]
NodeFilter = NameFilter


class Program(NamedTuple):
    """A traced loss function: its jaxpr, its active nodes, and how to unpack it.

    `held` is empty in a clean pass; in noisy ones it says what stands at the holds and at
    the statistics of the batch, and, where each example's loss answers for its share in
    a statistic, has the share and the derivative of the sum of the losses by the
    statistic. `bind` evaluates the equations.
    """

    jaxpr: Any
    consts: Any
    sites: tuple[Site, ...]
    active: frozenset[str]
    out_tree: Any
    batch_size: int | None  # None: one loss for the whole batch
    held: dict[str, Any] = {}
    bind: rewriting.Bind = tags.bind_eqn

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

    @property
    def statistics(self) -> tuple[Site, ...]:
        """The means over the batch in which noise of several examples meets."""
        return tuple(s for s in self.sites if s.kind == "statistic")

    def answering(self, values: NodeTree, gains: NodeTree) -> "Program":
        """The program of noisy passes that hold the statistics of the clean one.

        Each example's loss answers for its share in them: {name of shares: gain}.
        """
        held = {site.name: values[site.name] for site in self.statistics}
        answered = {name: (values[name], gain) for name, gain in gains.items()}
        return self._replace(held={**self.held, **held, **answered})

    def shared(self) -> "Program":
        """The same for estimators that hold no statistics.

        The batch shares the nodes before the last one, and those in a loop with it: all
        losses answer for them.
        """
        kinds = [s.kind for s in self.sites]
        last = max((i for i, kind in enumerate(kinds) if kind == "statistic"), default=0)
        while last < len(kinds) and "statistic" in kinds and self.sites[last].steps:
            last += 1
        meeting = (s._replace(batch_axis=None) for s in self.sites[:last])
        return self._replace(sites=(*meeting, *self.sites[last:]))


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
    credited: bool = False,
    rows: frozenset[int] = frozenset(),
    hold_stops: bool = True,
) -> Program:
    """Trace `loss_fn` and check its nodes; values may be abstract.

    Args:
      loss_fn: `(params, batch[, key]) -> losses` or `(losses, aux)`.
      params, batch, key: arguments, or ShapeDtypeStructs of them.
      nodes: predicate on names, or names with wildcards ("layers/*"), one or several.
        The others are no nodes: what they cut becomes part of a larger block.
      loss_axes: 1, or 2 to allow losses (B, T), one for each example and time step.
      credited: rules of the user say which losses answer for a node.
      rows: lengths of first axes that such a rule answers for row by row.
      hold_stops: whether a `stop_gradient` keeps its clean value in noisy passes.

    Raises:
      ValueError: no nodes, losses not `(B,)` or `()`, a wrong batch axis, names that
        collide, or `nodes` naming none.
    """
    args = arguments(loss_fn, params, batch, key)
    jaxpr, consts, out, batch_size = _with_nodes(
        loss_fn, args, loss_axes, credited, rows=rows, hold_stops=hold_stops
    )
    sites = numbered(tags.find_sites(jaxpr))
    names = [s.name for s in sites if s.kind == "node"]
    active = frozenset(chosen_names(names, nodes, "nodes"))
    if not active:
        hint = f"`nodes=` keeps none of {names}" if names else "it has none"
        raise ValueError(
            f"the loss function has no nodes to perturb ({hint}): no parameter "
            "that moves its losses is multiplied with a value of the batch."
        )
    program = Program(jaxpr, consts, sites, active, jax.tree.structure(out), batch_size)
    for site in program.nodes:
        _check_site(site, batch_size, rows)
    _check_hashes(active)
    return program


# ------------------------------------------------------------------------ reading it


def site_names(loss_fn: LossFn, params, batch, key=None) -> set[str]:
    """Names of all marks, with rules of credit and without them."""
    args = arguments(loss_fn, params, batch, key)
    found = (_with_nodes(loss_fn, args, 2, credited)[0] for credited in (False, True))
    sites = (site for jaxpr in found for site in numbered(tags.find_sites(jaxpr)))
    return {site.name for site in sites}


def _with_nodes(loss_fn: LossFn, args, loss_axes: int, credited: bool, **options):
    """(jaxpr with all nodes tagged, its constants, shapes of the output, batch size)."""
    jaxpr, consts, out = rewriting.to_jaxpr(loss_fn, args)
    check_arrays(jaxpr)
    jaxpr, consts = as_reductions(jaxpr, consts, jax.tree.leaves(args))
    jaxpr, consts = as_lines(jaxpr, consts, jax.tree.leaves(args))
    losses = split_aux(out)[0]
    batch_size = check_losses(losses, loss_axes)
    credited = credited and losses.ndim == 1  # of (B, T) the examples must not meet
    jaxpr, consts = with_nodes(jaxpr, consts, args, batch_size, credited, **options)
    return jaxpr, consts, out, batch_size


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


def check_arrays(jaxpr) -> None:
    """ValueError for mutable arrays, which no pass that is run in pieces can follow."""
    if tags.contains(jaxpr, lambda p: p.name in ("new_ref", "empty_ref")):
        raise ValueError(
            "the loss function writes into a mutable array (jax.new_ref), whose values "
            "no estimator but backprop can follow. Use arrays, and x = x.at[i].set(y)."
        )


def check_losses(losses, axes: int = 1) -> int | None:
    shape = getattr(losses, "shape", None)
    if shape is None or len(shape) > axes:
        found = f"a {type(losses).__name__}" if shape is None else f"shape {shape}"
        size = shape[0] if shape else "B"
        raise ValueError(
            "the loss function must return losses of shape (B,), one per example, or () "
            f"for one experiment per batch, or (losses, aux); got {found}. Reduce each "
            f"example's loss to a number, and check that no ({size}, 1) met a ({size},). "
            "Losses (B, T), one for each time step, need an estimator with credit= "
            "(bpfree.causal)."
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"losses must be floating point, got {losses.dtype}")
    if 0 in shape:
        raise ValueError("the batch is empty: the loss function returned no losses")
    return shape[0] if shape else None


def _check_site(site: Site, batch_size: int | None, rows) -> None:
    axis = site.batch_axis
    if batch_size is None or axis is None or site.shape[axis] in (batch_size, *rows):
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
