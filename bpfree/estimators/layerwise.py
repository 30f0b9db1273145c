"""Layer-wise injection: one node is perturbed at a time.

The noise of a sample then stands at one node l, and its loss differences answer for that
node alone: in

    dL = sum_l g_l . eps_l        (all nodes at once)
    dL = g_l . eps_l              (layer-wise)

what the other nodes contribute is variance. The price is a set of noisy passes for each
node; each of them evaluates only what is downstream of its node, because all else has
its clean value. Nodes inside one loop are not apart: each takes the whole loop.
"""

from collections.abc import Mapping
from typing import NamedTuple

from bpfree.program.tags import Site
from bpfree.program.trace import Program
from bpfree.sampling.loop import Layout, make_layout

Budget = int | Mapping[str, int]


class Part(NamedTuple):
    """Nodes that are perturbed together, and the draws of their noise."""

    nodes: tuple[Site, ...]
    layout: Layout

    @property
    def names(self) -> frozenset[str]:
        return frozenset(site.name for site in self.nodes)


NOTHING = Part((), Layout(0, 1))


class Schedule(NamedTuple):
    """Which nodes are perturbed together.

    Attributes:
      layerwise: one at a time, or all at once.
      layout: the draws; {node: its draws} where every node has its own.
    """

    layerwise: bool
    layout: Layout | dict[str, Layout]

    @property
    def layouts(self) -> tuple[Layout, ...]:
        if isinstance(self.layout, dict):
            return tuple(self.layout.values())
        return (self.layout,)


def make_schedule(plan, num_samples: Budget, chunk_size, sharding, layerwise) -> Schedule:
    """Raises ValueError for bad counts, and for counts per node of one joint sample."""

    def layout(count):
        return make_layout(plan, count, chunk_size, sharding)

    if not isinstance(num_samples, Mapping):
        return Schedule(layerwise, layout(num_samples))
    if not layerwise:
        raise ValueError(
            "num_samples per node needs layerwise=True: otherwise every sample perturbs "
            "all nodes at once, and there is one count for them all"
        )
    if not num_samples:
        raise ValueError("num_samples={} names no node")
    return Schedule(layerwise, {name: layout(n) for name, n in num_samples.items()})


def parts(schedule: Schedule, program: Program) -> tuple[Part, ...]:
    """The parts of one estimate; raises ValueError if the counts name other nodes."""
    nodes, layout = program.nodes, schedule.layout
    if not isinstance(layout, dict):
        groups = [(site,) for site in nodes] if schedule.layerwise else [nodes]
        return tuple(Part(group, layout) for group in groups)
    if set(layout) != program.active:
        raise ValueError(
            f"num_samples has counts for {sorted(layout)}, but the nodes are "
            f"{sorted(program.active)}: name each of them, and leave out with nodes= "
            "what shall not be perturbed"
        )
    return tuple(Part((site,), layout[site.name]) for site in nodes)
