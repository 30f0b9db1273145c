"""Citation graphs by name: one graph, whose nodes are the examples.

A part of the `Dataset` holds node numbers, x int32 (N,); the graph itself is what `graph`
returns, and belongs to the model (`bpfree.models.gcn`).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bpfree.data import Dataset, places
from bpfree.data.catalogue import GRAPHS


class Graph(NamedTuple):
    """N nodes and their E messages, self-loops included.

    Attributes:
      features: float32 (N, words), each row divided by its sum.
      senders, receivers: int32 (E,).
      weights: float32 (E,), entries of D^-1/2 (A + I) D^-1/2 with the degrees D of A + I.
    """

    features: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    weights: np.ndarray


def load(name: str, *, dir: str = "") -> Dataset:
    """The public split of `name`: node numbers and labels.

    Args:
      name: one of `catalogue.GRAPHS`.
      dir: where the folders of raw files are; "": what BPFREE_DATA_DIR says.

    Raises DataError: as `images.load`.
    """
    arrays, record = places.read(name, GRAPHS[name], dir)
    labels = arrays["y"].astype(np.int32)
    train, validation, test = (
        {"x": arrays[k].astype(np.int32), "label": labels[arrays[k]]}
        for k in ("train", "val", "test")
    )
    entry = GRAPHS[name]
    source = {"name": name, **record, "split": "given by node", "note": entry.note}
    return Dataset(train, validation, test, entry.num_classes, source).counted()


@lru_cache
def graph(name: str, dir: str = "") -> Graph:
    """The graph `name`; its arrays are shared by all callers. Raises as `load`."""
    arrays, _ = places.read(name, GRAPHS[name], dir)
    size, words = arrays["x_shape"]
    features = np.zeros((size, words), np.float32)
    rows = np.repeat(np.arange(size), np.diff(arrays["x_indptr"]))
    features[rows, arrays["x_indices"]] = 1
    features /= np.maximum(features.sum(1, keepdims=True), 1)
    return normalised(features, arrays["edges"])


def normalised(features: np.ndarray, edges: np.ndarray) -> Graph:
    """The graph of features (N, words) and undirected edges (2, E / 2) without loops."""
    loops = np.arange(len(features), dtype=np.int32)
    senders = np.concatenate([edges[0], edges[1], loops]).astype(np.int32)
    receivers = np.concatenate([edges[1], edges[0], loops]).astype(np.int32)
    scale = np.bincount(receivers, minlength=len(features)) ** -0.5
    weights = (scale[senders] * scale[receivers]).astype(np.float32)
    return Graph(features, senders, receivers, weights)
