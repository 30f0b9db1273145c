"""The least time of a program's kernels, and what they are for.

Every kernel takes at least

    seconds = max(FLOPs / peak, bytes / bandwidth, bytes sent / links)

and a program the sum over its kernels. That is a lower bound: no launch, no latency, no
arithmetic but that of products (hashing of random numbers, for instance), no padding.
One thing can undercut it: arrays that a GPU's L2 cache keeps between two kernels.
"""

from collections.abc import Mapping

from bpfree.hardware.chips import Chip
from bpfree.hardware.kernels import Kernel

GROUPS = (
    "noise",
    "products",
    "elementwise",
    "credit",
    "pull",
    "optimiser",
    "collectives",
    "validation",
)


def seconds(found: list[Kernel], chip: Chip | None, steps: int) -> dict[str, float]:
    """{group: seconds of a step at least}; {} without a chip."""
    if chip is None:
        return {}
    total = dict.fromkeys(GROUPS, 0.0)
    for kernel in found:
        total[group(kernel)] += kernel.times * at_least(kernel, chip) / steps
    return {name: least for name, least in total.items() if least}


def at_least(kernel: Kernel, chip: Chip) -> float:
    """Seconds of one run of a kernel, by the formula above."""
    products = sum(p.flops / getattr(chip, p.precision) for p in kernel.products)
    return max(products, kernel.bytes / chip.bandwidth, kernel.sent / chip.link)


# The library's own names for parts of a step (`jax.named_scope`): see `bpfree.program`.
_SCOPES: Mapping[str, str] = {
    "bpfree.validation": "validation",
    "bpfree.noise": "noise",
    "bpfree.credit": "credit",
    "bpfree.pull": "pull",
    "transpose(": "pull",
}


def group(kernel: Kernel) -> str:
    """The one of `GROUPS` that a kernel belongs to.

    By its largest product, else its result: where JAX's names say that it stands.
    """
    if kernel.collective:
        return "collectives"
    if kernel.products:
        scope = max(kernel.products, key=lambda p: p.flops).scope
        rest = "products"
    else:
        scope = next(filter(None, kernel.scopes), "")
        rest = "elementwise" if "bpfree." in scope else "optimiser"
    return next((g for mark, g in _SCOPES.items() if mark in scope), rest)
