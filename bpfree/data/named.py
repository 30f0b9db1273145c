"""The sets that we know by name, and what loads each of them."""

from collections.abc import Callable

from bpfree.data import Dataset, characters, digits, events, graphs, images, text
from bpfree.data.catalogue import EVENTS, GRAPHS, SETS, TEXTS

LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
    **dict.fromkeys(SETS, images.load),
    **dict.fromkeys(TEXTS, text.load),
    **dict.fromkeys(EVENTS, events.load),
    **dict.fromkeys(GRAPHS, graphs.load),
    **dict.fromkeys(characters.TEXTS, characters.load),
}
"""{name: function of `name`, which the digits do not take, and the config's options}."""
