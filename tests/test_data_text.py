"""Text sets: words to numbers, raw files and TFDS; they train through the launcher."""

import gzip
import hashlib
import os
import zlib

import jax
import numpy as np
import pytest

from bpfree.data import catalogue, raw, text
from bpfree.training import ConfigError, config, fit, job
from tests.test_data_files import TFDS, bare_machine, settings, tfds  # noqa: F401

assert TFDS
LABELS = np.arange(24) % 4
CSV = "".join(
    f'{label},"Say ""{label}"", say it {i}"\n' for i, label in enumerate(LABELS)
)


@pytest.fixture
def news(monkeypatch, tmp_path):
    """A folder of two tiny gzip files that pass for AG News."""
    lines = CSV.splitlines(keepends=True)
    files = {"train5k.csv": "".join(lines[:20]), "test.csv": "".join(lines[20:])}
    sums = {f: hashlib.sha256(c.encode()).hexdigest() for f, c in files.items()}
    entry = catalogue.TEXTS["ag_news_5k"]._replace(sha256=sums)
    monkeypatch.setitem(catalogue.TEXTS, "ag_news_5k", entry)
    folder = tmp_path / "ag-news"
    folder.mkdir()
    for file, content in files.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content.encode()))
    return folder


def test_words_and_their_numbers():
    found = text.numbers("It's a 2nd TEST; a test.", vocabulary=100)
    words = ["it", "s", "a", "2nd", "test", "a", "test"]
    assert found == [1 + zlib.crc32(w.encode()) % 99 for w in words]
    assert text.numbers("...", 100) == []
    assert all(1 <= n < 3 for n in text.numbers("many words of many kinds", 3))


def test_ids_are_cut_and_filled_up():
    x = text.ids([[5, 6, 7], [], [8]], length=2)
    np.testing.assert_array_equal(x, [[5, 6], [0, 0], [8, 0]])
    assert x.dtype == np.int32


def test_bags_count_and_have_length_one():
    x = text.bags([[1, 2, 2], []], vocabulary=4)
    np.testing.assert_allclose(x, [[0, 1 / 5**0.5, 2 / 5**0.5, 0], [0, 0, 0, 0]])
    assert x.dtype == np.float32


def test_raw_files(news):
    data = text.load("ag_news_5k", dir=str(news.parent), vocabulary=50, length=6)
    assert [data.source[k] for k in ("train", "validation", "test")] == [18, 2, 4]
    assert data.source["from"] == str(news) and "4,999" in data.source["note"]
    parts = [data.train, data.validation, data.test]
    np.testing.assert_array_equal(np.concatenate([p["label"] for p in parts]), LABELS)
    expected = text.numbers("say 3 say it 23", 50)
    np.testing.assert_array_equal(data.test["x"][-1], [*expected, 0])


def test_a_bad_file_and_a_missing_set_are_named(news):
    path = news / "test.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(raw.DataError, match=r"test\.csv\.gz is cut off"):
        text.load("ag_news_5k", dir=str(news.parent))
    with pytest.raises(
        raw.DataError, match="(?s)not on this machine.*folder ag_news of "
    ):
        text.load("ag_news_5k", dir="/elsewhere")
    with pytest.raises(raw.DataError, match=r"(?s)tfds\.builder\('ag_news_subset'"):
        text.load("ag_news_subset", dir=str(news.parent))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"form": "bags"}, "form 'bags' is unknown.*ids"),
        ({"vocabulary": 1}, "at least 2"),
        ({"length": 0}, "length=0"),
        ({"preprocess": "zca"}, "'preprocess'"),
    ],
)
def test_mistakes_in_a_config(mistake, message, news):
    data = {"name": "ag_news_5k", "dir": str(news.parent), **mistake}
    with pytest.raises(ConfigError, match=message):
        job.prepare(config.read(settings(**data)))


def test_bags_train(news, tmp_path):
    data = {"name": "ag_news_5k", "dir": str(news.parent), "form": "bag"}
    with jax.numpy_dtype_promotion("standard"):
        result = fit(settings(**data, vocabulary=30), tmp_path / "run")
    assert result.params["Dense_0"]["kernel"].shape == (30, 4)


def test_tfds_path_on_mock_data(tfds):  # noqa: F811
    with tfds.testing.mock_data(num_examples=20):
        first, second = text.load("ag_news_subset"), text.load("ag_news_subset")
    assert first.train["x"].shape == (18, 64) and first.num_classes == 4
    assert first.source["from"].startswith("TFDS, ag_news_subset/")
    assert first.source == second.source and set(first.source["sha256"]) == {
        "train",
        "test",
    }


@pytest.mark.skipif("BPFREE_DATA_DIR" not in os.environ, reason="BPFREE_DATA_DIR not set")
def test_real_files(monkeypatch):
    directory = DIRECTORY
    try:
        data = text.load("ag_news_5k", dir=directory)
    except raw.DataError as error:
        if "not on this machine" in str(error):
            pytest.skip("ag_news_5k is not here")
        raise
    assert [data.source[k] for k in ("train", "validation", "test")] == [4500, 499, 7600]
    np.testing.assert_array_equal(np.bincount(data.test["label"]), [1900] * 4)


DIRECTORY = os.environ.get("BPFREE_DATA_DIR", "")
