"""A kernel as a stack of matrices: A (G, O, d), one for each independent product.

Whatever axes a kernel has, its layer computes y = A z for inputs z of d features. G
counts the matrices that share no inputs (groups of a convolution, layers stacked by
`scan`, batch dimensions of a product) and the blocks into which a wide one is cut.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax


class Structure(NamedTuple):
    """Which inputs of a kernel share a matrix.

    Attributes:
      block: the largest d. A wider product is cut into equal parts of its first input
        axis, as few as do (its length may have no divisors: then there are many). None:
        no limit.
      channel_only: all positions of a convolution's window share one (C, C) matrix.
    """

    block: int | None = None
    channel_only: bool = False


class Layout(NamedTuple):
    """How the entries of a kernel stand in (G, O, d).

    Attributes:
      shape: of the kernel.
      split: the same with some axes split in two.
      order: permutation of the axes of `split`: blocks, then outputs, then inputs.
      sizes: (G, O, d).
      features: (parts, channels in a part, offsets): what the inputs of a product are
        made of. Offsets are the positions of a convolution's window.
      channel_only: offsets count as outputs, so that all share one (C, C) statistic.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, int, int]
    features: tuple[int, int, int]
    channel_only: bool

    def matrices(self, kernel: jax.Array) -> jax.Array:
        """The kernel as (G, O, d)."""
        return kernel.reshape(self.split).transpose(self.order).reshape(self.sizes)

    def kernel(self, matrices: jax.Array) -> jax.Array:
        """The inverse of `matrices`."""
        permuted = matrices.reshape([self.split[i] for i in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return permuted.transpose(back).reshape(self.shape)

    def inputs(self, rows: jax.Array) -> jax.Array:
        """Inputs of the products (g, n, channels x offsets) as (G, rows, d)."""
        parts, channels, offsets = self.features
        rows = rows.reshape(*rows.shape[:2], parts, channels, offsets)
        if self.channel_only:
            rows = rows.transpose(0, 2, 1, 4, 3)  # (g, parts, n, offsets, channels)
        else:
            rows = rows.transpose(0, 2, 1, 3, 4)
        return rows.reshape(self.sizes[0], -1, self.sizes[2])


def make_layout(
    shape: Sequence[int],
    blocks: Sequence[int],
    outs: Sequence[int],
    ins: Sequence[int],
    groups: int,
    offsets: Sequence[int],
    structure: Structure,
) -> Layout:
    """The layout of a kernel.

    Args:
      shape: of the kernel.
      blocks, outs, ins, offsets: its axes: stacked, output, input channels, window.
      groups: into which the first output axis is cut.
    """
    channels = math.prod(shape[i] for i in ins)
    window = math.prod(shape[i] for i in offsets)
    channel_only = structure.channel_only and window > 1
    width = channels * (1 if channel_only else window)
    parts = _parts(shape[ins[0]], width, structure.block)
    pieces = {i: [size] for i, size in enumerate(shape)}
    if groups > 1:
        pieces[outs[0]] = [groups, shape[outs[0]] // groups]
    if parts > 1:
        pieces[ins[0]] = [parts, shape[ins[0]] // parts]
    places: dict[int, list[int]] = {}
    split: list[int] = []
    for axis, sizes in pieces.items():
        places[axis] = list(range(len(split), len(split) + len(sizes)))
        split += sizes
    lead = [p for i in blocks for p in places[i]]
    lead += [p for i in (*outs[:1], ins[0]) for p in places[i][:-1]]
    rows = [places[i][-1] for i in outs]
    columns = [places[i][-1] for i in ins]
    (rows if channel_only else columns).extend(places[i][-1] for i in offsets)
    g, o, d = (math.prod(split[p] for p in part) for part in (lead, rows, columns))
    return Layout(
        tuple(shape),
        tuple(split),
        (*lead, *rows, *columns),
        (g, o, d),
        (parts, channels // parts, window),
        channel_only,
    )


def _parts(length: int, width: int, block: int | None) -> int:
    """The smallest divisor of `length` that cuts `width` to `block` or less."""
    if block is None:
        return 1
    divisors = (p for p in range(1, length + 1) if length % p == 0)
    return next((p for p in divisors if width // p <= block), length)
