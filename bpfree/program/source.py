"""What `find` reads: a flat program, and what was said of it."""

from typing import Literal, NamedTuple

from bpfree.program import weights
from bpfree.program.flat import Body, Live, Path


class Source(NamedTuple):
    """What is read: a flat program, with the arguments of `find`.

    Attributes:
      live: what the losses depend on (`flat.live`).
      moving: operations on which they depend through no `stop_gradient` that is held;
        nothing else gets a node.
      marked: the user has chosen the nodes, so that none is added.
      assumed: length of the axis by which a constant, or what a key draws, is taken for a
        value of the batch (coordinates, latents, time steps). Nothing rests on it: noise
        that does not stay with its example is seen on the way to the losses.
      anew: whether a node where the examples' place is lost, with an axis of the batch's
        size, begins anew on it. Nothing rests on that either: noise from before counts as
        shared by the examples.
      folded: whether the first axis of a leaf of the batch, where no axis has the batch's
        size but this one is a multiple, has the whole batch several times ("copies"), or
        several rows of each example side by side ("rows"). Nothing rests on it.
      ends, sums: of `weights`.
    """

    body: Body
    shapes: tuple[tuple[int, ...], ...]
    roles: tuple[str, ...]
    live: Live
    moving: set[Path]
    marked: bool
    batch: int | None
    credited: bool
    rows: frozenset[int]
    hold_stops: bool
    everywhere: bool
    assumed: int | None = None
    anew: bool = False
    folded: Literal["copies", "rows"] | None = None
    ends: dict[Path, Path] = {}
    sums: dict[Path, tuple[int, int]] = {}

    def placing(self, assumed: int | None) -> "Source":
        """With the places of nodes."""
        if self.marked:
            return self
        made_of = weights.structure(self.body, self.roles, assumed)
        sums = weights.summed_products(self.body, made_of, self.live)
        ends = weights.ends(self.body, made_of, sums, self.live)
        return self._replace(assumed=assumed, ends=ends, sums=sums)
