"""Nodes found in the program of any loss function.

A *weight product* multiplies a value made of parameters alone with one that depends on
the batch: a matrix product, a convolution, a lookup. Its node stands where `weights.ends`
says, after its bias or norm. `find` follows through the program, for each value,

* the parameters that have a derivative for it, up to the last node (`own`, and `past`
  where the path has crossed a product of two values of the batch);
* the parameters that decide about it without a derivative (a branch, an index);
* the nodes whose noise reaches it, and the axis on which the examples stand (`axes`).

Noise of example b must reach the loss of example b alone, or its credit would be wrong.
Where examples meet after a node in a sum over the batch, the sum is a *statistic*: noisy
passes hold it, and each example answers for its share of it (`estimators.statistics`).
Where they meet otherwise, or the batch axis is not known, the node is shared by the batch
(credited with the mean loss), or the parameter itself becomes the node ("weight noise"),
if it has fewer entries. So does a parameter whose derivative would cross the weights of
another product, and one that decides. All of these are right wherever the examples stand:
sizes that happen to be equal decide nothing.
"""

from collections.abc import Sequence

from bpfree.program import flat, tags
from bpfree.program.decisions import Found
from bpfree.program.reader import Reader
from bpfree.program.seen_through import held_marks, held_stops
from bpfree.program.source import Source


def find(
    jaxpr,
    consts,
    roles: Sequence[str],
    losses: int,
    batch: int | None,
    credited: bool,
    rows: frozenset[int] = frozenset(),
    hold_stops: bool = True,
    everywhere: bool = False,
) -> Found:
    """Where nodes stand in a loss function.

    Args:
      roles: of each input of the jaxpr: "param", "batch" or "key".
      losses: number of the output that holds the losses.
      batch: number of examples; None: one loss for the whole batch.
      credited: rules of the user say which losses answer for a node, so that examples
        may meet.
      rows: lengths of first axes whose rows such a rule tells apart.
      hold_stops: whether a `stop_gradient` keeps its clean value in noisy passes.
      everywhere: whether all parameters get weight noise.
    """
    body = flat.flatten(jaxpr, consts)
    used = [i == losses for i in range(len(body.outs))]

    def ends(body):
        marks = flat.nothing(body) if everywhere else held_marks(body)
        return marks | held_stops(body) if hold_stops else marks

    source = Source(
        body=body,
        shapes=tuple(v.aval.shape for v in jaxpr.invars),
        roles=tuple(roles),
        live=flat.live(body, used),
        moving=flat.live(body, used, ends).paths,
        marked=any(site.kind == "node" for site in tags.find_sites(jaxpr)),
        batch=batch,
        credited=credited or batch in (None, 1),
        rows=rows,
        hold_stops=hold_stops,
        everywhere=everywhere,
    )
    guesses = range(_guesses(source))

    def read(assumed, anew=False):
        seen = source.placing(batch if assumed else None)._replace(anew=anew)
        return [Reader(seen).read(losses, i) for i in guesses]

    readings = read(assumed=False)
    if batch and any(r.constants for r in readings):
        readings += read(assumed=True)
    best = min(readings, key=lambda r: r.shared)
    if best.coupled:
        again = read(assumed=best.source.assumed is not None, anew=True)
        best = min([best, *again], key=lambda r: r.shared)
    if any(best.shared) and _folds(source):
        seen = (best.source._replace(folded=folded) for folded in ("copies", "rows"))
        again = [Reader(s).read(losses, best.guess) for s in seen]
        best = min([best, *again], key=lambda r: r.shared)
    return best.found()


def _folds(source: Source) -> bool:
    """Whether a leaf of the batch may have several rows for each example."""
    leaves = zip(source.shapes, source.roles, strict=True)
    shapes = [shape for shape, role in leaves if role == "batch" and shape]
    batch = source.batch or 1
    return batch > 1 and any(s[0] > batch and not s[0] % batch for s in shapes)


def _guesses(source: Source) -> int:
    """How many axes of the batch's size the leaves of the batch have at most."""
    leaves = zip(source.shapes, source.roles, strict=True)
    sizes = [shape.count(source.batch) for shape, role in leaves if role == "batch"]
    return max([1, *sizes]) if source.batch else 1
