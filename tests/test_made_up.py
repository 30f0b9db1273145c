"""Made-up data: the shapes of a set, none of its files; smoke variants are on them."""

import numpy as np
import pytest

from bpfree.data import events, graphs, images, made_up, text
from bpfree.data.catalogue import SETS
from tests.test_configs import FILES, load

MADE_UP = {"dir": made_up.DIR}


@pytest.mark.parametrize("name", SETS)
def test_images_have_the_shape_and_classes_of_their_set(name, monkeypatch):
    monkeypatch.delenv("BPFREE_DATA_DIR", raising=False)
    data = images.load(name, **MADE_UP)
    assert data.source["from"] == "made-up" and "sha256" not in data.source
    for part in (data.train, data.validation, data.test):
        assert part["x"].shape[1:] == SETS[name].shape
        assert part["x"].dtype == np.float32 and 0 <= part["x"].min() < 1
        assert part["label"].max() < data.num_classes == SETS[name].num_classes


def test_the_loader_does_what_it_does_with_files():
    plain = images.load("mnist", **MADE_UP)
    made = images.load("mnist", preprocess="centre", crop=2, **MADE_UP)
    mean = plain.train["x"].mean(0, keepdims=True)
    np.testing.assert_allclose(made.test["x"], plain.test["x"] - mean, atol=1e-6)
    assert made.augment is not None


def test_texts_events_and_graphs():
    x = text.load("trec", length=7, vocabulary=50, **MADE_UP).train["x"]
    assert x.shape == (90, 7) and 1 <= x.min() and x.max() < 50
    x = events.load("nmnist_small", steps=5, pool=2, **MADE_UP).train["x"]
    assert x.shape == (90, 5, 17, 17, 2) and 0 < x.mean() < 1
    data, graph = graphs.load("cora", **MADE_UP), graphs.graph("cora", **MADE_UP)
    assert data.train["x"].shape == (140,) and data.test["x"].shape == (1000,)
    assert graph.features.shape == (2708, 1433)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_smoke_variants_have_the_data_and_model_of_their_config(path):
    module = load(path)
    smoke, real = module.get_config("smoke"), module.get_config()
    assert smoke.data.name == real.data.name and smoke.model.name == real.model.name
    assert smoke.data.get("dir", "made-up") == "made-up"
