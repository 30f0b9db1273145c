"""Event recordings and citation graphs from raw files; the launcher trains on a graph."""

import hashlib

import jax
import numpy as np
import pytest

from bpfree.data import catalogue, events, graphs, raw
from bpfree.training import config, fit, job
from bpfree.training.names import ConfigError


def place(monkeypatch, folder, sets, name, arrays):
    """The arrays as the one file of a set, and its checksum in the catalogue."""
    folder.mkdir()
    (file,) = sets[name].sha256
    np.savez(folder / file, **arrays)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    monkeypatch.setitem(sets, name, sets[name]._replace(sha256={file: digest}))


@pytest.fixture
def recordings(monkeypatch, tmp_path):
    """20 training recordings of one event and two test recordings of three."""
    arrays = {}
    for part, counts in (("train", [1] * 20), ("test", [3, 3])):
        total = sum(counts)
        arrays[f"{part}_len"] = np.array(counts, np.uint16)
        arrays[f"{part}_labels"] = np.arange(len(counts), dtype=np.uint8) % 10
        arrays[f"{part}_t_ms"] = np.arange(total, dtype=np.uint16) * 100
        arrays[f"{part}_p"] = np.arange(total, dtype=np.uint8) % 2
        arrays[f"{part}_y"] = np.full(total, 33, np.uint8)
        arrays[f"{part}_x"] = np.arange(total, dtype=np.uint8)
    folder = tmp_path / "nmnist_small"
    place(monkeypatch, folder, catalogue.EVENTS, "nmnist_small", arrays)
    return tmp_path


def test_events_fall_into_bins(recordings):
    data = events.load("nmnist_small", dir=str(recordings), steps=3, pool=2)
    assert [data.source[k] for k in ("train", "validation", "test")] == [18, 2, 2]
    assert data.test["x"].shape == (2, 3, 17, 17, 2)
    first, second = data.test["x"]
    found = np.argwhere(first).tolist()  # events at 0, 100 and 200 ms
    assert found == [[0, 16, 0, 0], [1, 16, 0, 1], [2, 16, 1, 0]]
    assert not second.any()  # all after 300 ms
    assert data.train["x"].dtype == np.float32
    np.testing.assert_array_equal(data.validation["label"], [8, 9])


def test_mistakes_about_events(recordings):
    with pytest.raises(ValueError, match="pool=0 must be at least 1"):
        events.load("nmnist_small", dir=str(recordings), pool=0)
    with pytest.raises(raw.DataError, match="not on this machine.*(?s:.)*nmnist_small"):
        events.load("nmnist_small", dir=str(recordings / "elsewhere"))


@pytest.fixture
def cora(monkeypatch, tmp_path):
    """Twelve nodes on a ring, three words each."""
    size = 12
    arrays = {
        "x_indptr": np.arange(size + 1, dtype=np.int32) * 3,
        "x_indices": np.tile(np.arange(3, dtype=np.uint16), size)
        + np.repeat(np.arange(size, dtype=np.uint16) % 4, 3),
        "x_shape": np.array([size, 6]),
        "edges": np.stack([np.arange(size - 1), np.arange(1, size)]).astype(np.int32),
        "y": np.arange(size, dtype=np.int16) % 7,
        "train": np.arange(4, dtype=np.int32),
        "val": np.arange(4, 7, dtype=np.int32),
        "test": np.arange(7, 12, dtype=np.int32),
    }
    place(monkeypatch, tmp_path / "planetoid", catalogue.GRAPHS, "cora", arrays)
    graphs.graph.cache_clear()
    yield str(tmp_path)
    graphs.graph.cache_clear()


def test_graphs(cora):
    data, graph = graphs.load("cora", dir=cora), graphs.graph("cora", cora)
    assert [data.source[k] for k in ("train", "validation", "test")] == [4, 3, 5]
    np.testing.assert_array_equal(data.test["x"], np.arange(7, 12))
    np.testing.assert_array_equal(data.test["label"], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(graph.features.sum(1), 1, rtol=1e-6)
    assert (graph.features > 0).sum() == 36
    dense = np.zeros((12, 12))
    np.add.at(dense, (graph.receivers, graph.senders), graph.weights)
    degrees = np.array([2, *[3] * 10, 2])
    adjacency = np.eye(12) + np.eye(12, k=1) + np.eye(12, k=-1)
    np.testing.assert_allclose(
        dense, adjacency / np.sqrt(np.outer(degrees, degrees)), 1e-6
    )


def settings(directory, **changes):
    return {
        "seed": 0,
        "data": {"name": "cora", "dir": directory},
        "model": {"name": "gcn", "graph": "cora", "hidden": (3,), "dir": directory},
        "batch_size": 4,
        "num_steps": 2,
        "log_every": 2,
        "checkpoint_every": 2,
        "noise": {
            "num_samples": 4,
            "credit": ("models.gcn.local_credit", {"graph": "cora", "dir": directory}),
        },
        "chain": (("node_perturbation", "noise"), ("sgd", {"learning_rate": 0.1})),
        **changes,
    }


def test_a_graph_trains(cora, tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        result = fit(settings(cora), tmp_path / "run")
    assert result.steps == 2 and 0 <= result.test["accuracy"] <= 1


def test_an_unknown_set_names_those_that_are_known(cora):
    wrong = settings(cora, data={"name": "coral"})
    with pytest.raises(ConfigError, match="Did you mean 'cora'.*citeseer.*nmnist_small"):
        job.prepare(config.read(wrong))
