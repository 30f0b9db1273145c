"""The sets we know by name, of `catalogue.toml`: files, checksums, TFDS's names."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A set, and where it may come from.

    Attributes:
      num_classes: labels are 0 .. num_classes - 1.
      sha256: {file name without .gz: SHA-256 of its gunzipped content}; empty: not read
        from raw files.
      format: of those files, one of `raw.PARSERS`.
      splits: TFDS's names of the training and the test part; (): not in TFDS.
      note: what the record must say of these files.
      debian: the package that installs them, if any.
      folder: where the raw files lie, if not in a folder of the set's name.
      shape: of an image (height, width, channels), of a frame of events (height, width,
        2), of a graph's features (nodes, words); () for texts.
      sizes: examples in the training part, validation included, and in the test part.
    """

    num_classes: int
    sha256: Mapping[str, str] = {}
    format: str = "idx"
    splits: tuple[str, ...] = ("train", "test")
    note: str = ""
    debian: str = ""
    folder: str = ""
    shape: tuple[int, ...] = ()
    sizes: tuple[int, ...] = (0, 0)


def _entry(values: dict[str, Any]) -> Entry:
    fields: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
    }
    return Entry(**fields)


_FILE = resources.files(__package__).joinpath("catalogue.toml")
_KINDS = tomllib.loads(_FILE.read_text(encoding="utf-8"))
SETS, TEXTS, EVENTS, GRAPHS = (
    {name: _entry(values) for name, values in _KINDS[kind].items()}
    for kind in ("images", "texts", "events", "graphs")
)
