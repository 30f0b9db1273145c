"""Layer-wise injection: one node is perturbed at a time.

The noise of a sample then stands at one node l, and its loss differences answer for that
node alone: in

    dL = sum_l g_l . eps_l        (all nodes at once)
    dL = g_l . eps_l              (layer-wise)

what the other nodes contribute is variance. The price is a set of noisy passes for each
node; each of them evaluates only what is downstream of its node, because all else has
its clean value (`program.singly`). Nodes inside one loop are not apart: each takes the
whole loop.
"""

from collections.abc import Mapping
from typing import NamedTuple

from bpfree.program.tags import Site
from bpfree.program.trace import Program
from bpfree.sampling.loop import Layout, make_layout

Budget = int | Mapping[str, int]


class Part(NamedTuple):
    """Nodes that one program perturbs, together or one at a time, and their draws."""

    nodes: tuple[Site, ...]
    layout: Layout
    together: bool = True

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


def parts(schedule: Schedule, program: Program, alone: bool = False) -> list[Part]:
    """The parts of one estimate; raises ValueError if the counts name other nodes.

    Args:
      alone: layer-wise, every node has a program for itself.
    """
    nodes, layout = program.nodes, schedule.layout
    if not schedule.layerwise:
        return [Part(nodes, schedule.layouts[0])]
    layouts = layout if isinstance(layout, dict) else {s.name: layout for s in nodes}
    if set(layouts) != program.active:
        raise ValueError(
            f"num_samples has counts for {sorted(layouts)}, but the nodes are "
            f"{sorted(program.active)}: name each of them, and leave out with nodes= "
            "what shall not be perturbed"
        )
    groups: dict[Layout, list[Site]] = {}
    for site in nodes:
        groups.setdefault(layouts[site.name], []).append(site)
    made = (one_at_a_time(s, layout, program, alone) for layout, s in groups.items())
    return [part for parts in made for part in parts]


def one_at_a_time(sites, layout: Layout, program: Program, alone=False) -> list[Part]:
    """One part, in which samples of all sites share the chunk; or one for each site.

    Effects happen in the order of the passes, so each site has its own passes then.
    """
    if alone or layout.sequential or program.jaxpr.effects:
        return [Part((site,), layout) for site in sites]
    chunk = max(1, layout.chunk // len(sites))
    return [Part(tuple(sites), layout._replace(chunk=chunk), together=False)]
