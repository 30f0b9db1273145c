"""Made-up contents of a known set, for smoke runs: its shapes, few examples, no files.

`config.data.dir = "made-up"` takes them in place of the files, so that the loader's own
code, the model and the chain run as they will on the data.
"""

from typing import Any

import numpy as np

from bpfree.data.catalogue import GRAPHS, SETS, TEXTS, Entry
from bpfree.data.raw import Part, Raw

DIR = "made-up"
_SIZES = (100, 40)  # training and test
_SPLIT = {"train": 140, "val": 500, "test": 1000}  # nodes of a graph


def of(name: str, entry: Entry) -> Any:
    """What the parser returns of the files, or TFDS, with other numbers in it."""
    rng = np.random.default_rng(0)
    if name in GRAPHS:
        return _graph(rng, entry)
    return Raw(*(_part(rng, name, entry, count) for count in _SIZES))


def _part(rng: np.random.Generator, name: str, entry: Entry, count: int) -> Part:
    if name in SETS:
        made = rng.integers(0, 256, (count, *entry.shape), np.uint8)
    elif name in TEXTS:
        words = rng.integers(0, 100, (count, 20))
        made = np.array([" ".join(f"word{i}" for i in row) for row in words], object)
    else:  # events, in rows (milliseconds, polarity, y, x); the shape is of a frame
        made = np.empty(count, object)
        high = (300, entry.shape[2], *entry.shape[:2])
        for i in range(count):
            made[i] = rng.integers(0, high, (50, 4), np.int32)
    return Part(made, np.arange(count, dtype=np.int32) % entry.num_classes)


def _graph(rng: np.random.Generator, entry: Entry) -> dict[str, np.ndarray]:
    nodes, words = entry.shape
    edges = rng.integers(0, nodes, (2, 2 * nodes))
    places = np.split(rng.permutation(nodes), np.cumsum(list(_SPLIT.values())))
    return {
        "x_shape": np.array(entry.shape),
        "x_indptr": np.arange(0, 10 * nodes + 1, 10),
        "x_indices": rng.integers(0, words, 10 * nodes),
        "edges": edges[:, edges[0] != edges[1]],
        "y": rng.integers(0, entry.num_classes, nodes),
        **dict(zip(_SPLIT, places, strict=False)),
    }
