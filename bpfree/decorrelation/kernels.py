"""The kernels of a loss function that `decorrelate` works on."""

from bpfree.decorrelation import inputs
from bpfree.decorrelation.layout import Layout, Structure
from bpfree.program.names import NameFilter, chosen_names
from bpfree.program.trace import LossFn


def find_layers(
    loss_fn: LossFn,
    params,
    batch,
    *,
    block: int | None = None,
    channel_only: bool = False,
) -> dict[str, tuple[int, int, int]]:
    """The kernels that `decorrelate` finds, {path: (G, O, d)}, R being (G, d, d).

    Args:
      loss_fn, params, batch: shapes of params and batch are enough.
      block, channel_only: as in `bpfree.decorrelate`.

    Example:
        >>> bpfree.decorrelation.find_layers(loss_fn, params, batch)
        {'w1': (1, 4, 3), 'w2': (1, 2, 4)}
    """
    found = inputs.layers(loss_fn, params, batch, Structure(block, channel_only))
    return {path: layout.sizes for path, layout in found.items()}


def chosen_layers(
    loss_fn, params, batch, structure: Structure, layers: NameFilter
) -> dict[str, Layout]:
    """{path: layout} of those that `layers` names; ValueError if it leaves none."""
    found = inputs.layers(loss_fn, params, batch, structure)
    chosen = {p: found[p] for p in chosen_names(list(found), layers, "kernels")}
    if not chosen:
        raise ValueError(
            f"no kernel is left to decorrelate; the loss function has {list(found)}. A "
            "kernel is a parameter that enters a matrix product or a convolution."
        )
    return chosen
