"""The argument `credit=`: a rule of `rules`, rules by segments, or one for each node."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpfree.program.tags import Site
from bpfree.sampling.rules import Rule, per_example, spread_over


class Segments(NamedTuple):
    """What `by_segment` returns: functions of the batch that number the rows' losses."""

    ids: tuple[Callable[[Any], jax.Array], ...]

    def of_batch(self, batch) -> dict[int, jax.Array]:
        """{number of rows: the segment of each row, integers (rows,)}."""
        found = [jnp.asarray(ids(batch)) for ids in self.ids]
        for rows in found:
            if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
                raise ValueError(
                    "a function of bpfree.by_segment must return whole numbers (rows,), "
                    f"one for each row; got {rows.dtype} of shape {rows.shape}"
                )
        return {len(rows): rows for rows in found}

    def rule(self, batch) -> Rule:
        """The rule for this batch; the values of rows stand at a node's batch axis."""
        of_rows = self.of_batch(batch)

        def rule(centred, node):
            at = node.batch_axis
            rows = None if at is None else of_rows.get(node.shape[at])
            if centred.ndim != 2:
                raise ValueError(
                    "bpfree.by_segment needs losses (G,), one for each graph or "
                    f"sequence; the loss function returns {centred.shape[1:]}"
                )
            if rows is None:
                return per_example(centred, node)
            return spread_over(node, centred[:, rows], at)

        return rule


Credit = Rule | Segments | Mapping[str, Rule | Segments] | None


def by_segment(*ids: Callable[[Any], jax.Array]) -> Segments:
    r"""Credit rule for batches in which graphs or sequences lie one after the other.

    .. math:: w_{k,r} = L_{k,s(r)} - c_{s(r)}

    The value at row r, of a graph's node, edge or token, is credited with the loss of its
    segment s(r). Losses are (G,), one for each segment. Nodes of the loss function whose
    first axis counts such rows keep noise for each row; without the rule the batch would
    share them, or their kernels have weight noise.

    Contract: the expectation is that of the mean loss, if no row reaches the loss of
    another segment; nothing checks that it does not.

    Args:
      ids: functions `batch -> (rows,)`, the number of each row's segment; one for each
        kind of rows (nodes, edges), which are told apart by their count.

    Returns a rule. Raises ValueError without a function; and when traced, for numbers
    that are not whole, for two kinds with the same count of rows, and for as many rows as
    losses: then pass `credit=` a mapping from the names of nodes to rules.

    Example:
        >>> def of_graphs(params, batch):  # two graphs of three and of two nodes
        ...     h = jnp.tanh(batch["x"] @ params["w1"])
        ...     pooled = jax.ops.segment_sum(h, batch["graph"], num_segments=2)
        ...     return ((pooled @ params["w2"]) ** 2).sum(1)
        >>> rule = bpfree.by_segment(lambda batch: batch["graph"])
        >>> tx = bpfree.node_perturbation(of_graphs, num_samples=4, credit=rule)
        >>> graphs = {"x": batch["x"], "graph": jnp.array([0, 0, 0, 1, 1])}
        >>> tx.update(None, tx.init(params), params, batch=graphs)[0]["w1"].shape
        (3, 4)
    """
    if not ids or not all(map(callable, ids)):
        raise ValueError(
            "by_segment takes functions of the batch, each of which returns the number "
            "of every row's segment"
        )
    return Segments(ids)


def rows_of(credit: Credit, batch) -> frozenset[int]:
    """How many rows a node may have that a rule by segments credits row by row."""
    rules = credit.values() if isinstance(credit, Mapping) else [credit]
    found = [rule.of_batch(batch) for rule in rules if isinstance(rule, Segments)]
    return frozenset(count for of_rows in found for count in of_rows)


def check_segments(credit: Credit, batch, losses: int | None) -> None:
    """Raises ValueError where the count of rows does not say what they are."""
    if not isinstance(credit, Segments):
        return
    counts = credit.of_batch(batch)
    if losses in counts or len(counts) < len(credit.ids):
        raise ValueError(
            f"bpfree.by_segment: {sorted(counts)} rows and {losses} losses do not tell "
            "all kinds of rows and the losses apart by their counts; pad one of them, or "
            "pass credit= a mapping from the names of nodes to rules"
        )


def check_names(credit: Credit, nodes: tuple[Site, ...]):
    """Raises ValueError if a mapping of rules names what is no node."""
    names = [s.name for s in nodes]
    if isinstance(credit, Mapping) and (unknown := set(credit) - set(names)):
        raise ValueError(
            f"credit= names unknown nodes {sorted(unknown)}; the nodes are {names}"
        )


def rule_weights(
    credit: Credit, centred: jax.Array, nodes: tuple[Site, ...], batch: Any
) -> dict[str, jax.Array]:
    """{node: its rule's weights}, for the argument `credit=`.

    Args:
      credit: one rule for all nodes, or a mapping from names to rules; None, and for the
        nodes that a mapping leaves out, `per_example`.
      centred: (samples, *loss shape).
      batch: of which `by_segment` reads the segments.

    Raises ValueError where a rule returns what does not broadcast.
    """

    def bound(rule) -> Rule:
        return rule.rule(batch) if isinstance(rule, Segments) else rule

    rules = credit if isinstance(credit, Mapping) else {}
    named = {name: bound(rule) for name, rule in rules.items()}
    one = per_example if credit is None or isinstance(credit, Mapping) else credit
    other = bound(one)
    found = {s.name: named.get(s.name, other)(centred, s) for s in nodes}
    for s in nodes:
        wanted = (len(centred), *s.shape)
        if callable(found[s.name]):
            raise ValueError(
                f"the credit rule of node {s.name!r} returned a function: call its "
                "maker, as in credit=bpfree.causal()"
            )
        shape = found[s.name].shape
        fits = len(shape) == len(wanted) and shape[0] == wanted[0]
        if not fits or any(n not in (1, m) for n, m in zip(shape, wanted, strict=True)):
            raise ValueError(
                f"the credit rule of node {s.name!r} returned shape {shape}, which must "
                f"broadcast to {wanted}, with as many axes"
            )
    return found
