"""Image sets from raw files, Debian's package and TFDS; each fault has one message."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

from bpfree.data import catalogue, first, images, places, raw
from bpfree.training import ConfigError, config, fit, job

try:
    import tensorflow_datasets
except ImportError:
    tensorflow_datasets = None

BYTES = np.random.default_rng(0).integers(0, 256, (26, 3072), np.uint8)
LABELS = np.arange(26, dtype=np.uint8) % 10


def idx(array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def idx_files():
    """20 training and 6 test images of 28 x 28."""
    pixels = BYTES[:, :784].reshape(-1, 28, 28)
    return {
        "train-images-idx3-ubyte": idx(pixels[:20]),
        "train-labels-idx1-ubyte": idx(LABELS[:20]),
        "t10k-images-idx3-ubyte": idx(pixels[20:]),
        "t10k-labels-idx1-ubyte": idx(LABELS[20:]),
    }


def know(monkeypatch, name, files):
    """Let the catalogue expect these files of a set, whatever it really expects."""
    sha256 = {
        file: hashlib.sha256(content).hexdigest() for file, content in files.items()
    }
    entry = catalogue.SETS[name]._replace(sha256=sha256)
    monkeypatch.setitem(catalogue.SETS, name, entry)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """No data of the machine's own, and no TFDS."""
    monkeypatch.delenv("BPFREE_DATA_DIR", raising=False)
    monkeypatch.setattr(places, "DEBIAN", tmp_path / "debian")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)


@pytest.fixture
def mnist(monkeypatch, tmp_path):
    """A folder of four tiny gzip files that pass for MNIST."""
    know(monkeypatch, "mnist", idx_files())
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file, content in idx_files().items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
    return folder


def test_idx_files(mnist):
    data = images.load("mnist", dir=str(mnist.parent))
    assert data.source["from"] == str(mnist) and data.num_classes == 10
    assert [data.source[k] for k in ("train", "validation", "test")] == [18, 2, 6]
    assert data.source["sha256"] == catalogue.SETS["mnist"].sha256
    assert data.train["x"].dtype == np.float32 and data.train["label"].dtype == np.int32
    parts = (data.train, data.validation, data.test)
    pixels = np.concatenate([p["x"] for p in parts])
    assert pixels.shape == (26, 28, 28, 1)
    np.testing.assert_array_equal(pixels.reshape(26, -1) * 255, BYTES[:, :784])
    np.testing.assert_array_equal(np.concatenate([p["label"] for p in parts]), LABELS)


def test_the_directory_may_come_from_the_environment(mnist, monkeypatch):
    monkeypatch.setenv("BPFREE_DATA_DIR", str(mnist.parent))
    assert images.load("mnist").source["from"] == str(mnist)


def test_gunzipped_files_and_hyphens_will_do(monkeypatch, tmp_path):
    know(monkeypatch, "fashion_mnist", idx_files())
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for file, content in idx_files().items():
        (folder / file).write_bytes(content)
    assert images.load("fashion_mnist", dir=str(tmp_path)).source["test"] == 6


def test_debian_package_is_found_without_any_setting(monkeypatch, tmp_path):
    know(monkeypatch, "fashion_mnist", idx_files())
    folder = tmp_path / "debian" / "fashion-mnist"
    folder.mkdir(parents=True)
    for file, content in idx_files().items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content))
    assert images.load("fashion_mnist").source["from"] == str(folder)


def test_validation_is_the_end_of_training(mnist, monkeypatch):
    monkeypatch.setattr(places, "HELD_OUT", 1)
    data = images.load("mnist", dir=str(mnist.parent))
    np.testing.assert_array_equal(data.validation["label"], LABELS[19:20])
    assert data.source["split"].startswith("validation: the last 1 ")


@pytest.mark.parametrize(("name", "width"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_binary_archive(name, width, monkeypatch, tmp_path):
    labels = np.stack([99 - LABELS, LABELS], 1)[:, -width:].astype(np.uint8)
    rows = np.concatenate([labels, BYTES], 1)
    parts = {
        "data_batch_2": rows[10:20],
        "data_batch_1": rows[:10],
        "test_batch": rows[20:],
    }
    if name == "cifar100":
        parts = {"train": rows[:20], "test": rows[20:]}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for part, content in {**parts, "readme": np.zeros(3, np.uint8)}.items():
            suffix = ".html" if part == "readme" else ".bin"
            item = tarfile.TarInfo(f"{name}-binary/{part}{suffix}")
            item.size = content.nbytes
            tar.addfile(item, io.BytesIO(content.tobytes()))
    (file,) = catalogue.SETS[name].sha256
    know(monkeypatch, name, {file: packed.getvalue()})
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_bytes(packed.getvalue())
    data = images.load(name, dir=str(tmp_path))
    x = np.concatenate([data.train["x"], data.validation["x"], data.test["x"]]) * 255
    np.testing.assert_array_equal(x.transpose(0, 3, 1, 2).reshape(26, -1), BYTES)
    np.testing.assert_array_equal(data.test["label"], LABELS[20:])


@pytest.mark.parametrize("name", ["cifar10_jpeg", "tiny_imagenet_20"])
def test_npz_of_jpegs(name, monkeypatch, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    colours = np.zeros((26, 8, 8, 3), np.uint8) + BYTES[:, None, None, :3] // 2
    jpegs = []
    for pixels in colours:
        file = io.BytesIO()
        image.fromarray(pixels).save(file, "jpeg", quality=95)
        jpegs.append(file.getvalue())
    header, arrays = b"", {}
    if name == "cifar10_jpeg":
        header = os.path.commonprefix(jpegs)
        arrays["header"] = np.frombuffer(header, np.uint8)
        jpegs = [j.removesuffix(b"\xff\xd9") for j in jpegs]
    tails = [j[len(header) :] for j in jpegs]
    test = "val" if name == "tiny_imagenet_20" else "test"
    for part, rows in (("train", slice(20)), (test, slice(20, None))):
        arrays[f"{part}_bytes"] = np.frombuffer(b"".join(tails[rows]), np.uint8)
        arrays[f"{part}_len"] = np.array([len(t) for t in tails[rows]], np.uint16)
        arrays[f"{part}_labels"] = LABELS[rows]
    npz = io.BytesIO()
    np.savez(npz, **arrays)
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.npz").write_bytes(npz.getvalue())
    know(monkeypatch, name, {f"{name}.npz": npz.getvalue()})
    data = images.load(name, dir=str(tmp_path))
    np.testing.assert_allclose(data.test["x"] * 255, colours[20:], atol=4)
    np.testing.assert_array_equal(data.test["label"], LABELS[20:])
    assert data.source["note"] == catalogue.SETS[name].note != ""


# ------------------------------------------------------------------------------ faults


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def damage(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.write_bytes(gzip.compress(content))


def swap(path):
    other = path.with_name("t10k-images-idx3-ubyte.gz")
    path.write_bytes(other.read_bytes())


FAULTS = {
    "cut off": (cut, "is cut off or no gzip file"),
    "not gzip": (lambda path: path.write_bytes(b"<html>"), "is cut off or no gzip file"),
    "damaged": (damage, r"not the file expected.*bytes.*SHA-256 \w+, expected ba5eba11"),
    "swapped": (swap, "not the file expected"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "directory": (lambda path: (path.unlink(), path.mkdir()), "is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_named(fault, mnist):
    spoil, message = FAULTS[fault]
    file = "train-images-idx3-ubyte"
    spoil(mnist / f"{file}.gz")
    expected = catalogue.SETS["mnist"].sha256[file]
    with pytest.raises(
        raw.DataError, match=f"mnist/{file}.*{message}".replace("ba5eba11", expected)
    ):
        images.load("mnist", dir=str(mnist.parent))


def test_a_set_that_is_nowhere_says_what_to_do(monkeypatch):
    for name in ("mnist", "fashion_mnist"):
        with pytest.raises(raw.DataError) as caught:
            images.load(name)
        message = str(caught.value)
        assert f"'{name}' is not on this machine" in message
        assert "train-images-idx3-ubyte" in message and "BPFREE_DATA_DIR" in message
        assert "'bpfree[tfds]'" in message and "TensorFlow" in message
        assert f"tfds.builder('{name}', file_format='array_record')" in message
        assert ("apt-get install dataset-fashion-mnist" in message) == (
            name == "fashion_mnist"
        )
    with pytest.raises(raw.DataError) as caught:
        images.load("cifar10_jpeg", dir="/elsewhere")
    assert "folder cifar10_jpeg of /elsewhere" in str(caught.value)
    assert "tfds" not in str(caught.value)


def settings(**data):
    return {
        "seed": 0,
        "data": data,
        "model": {"name": "mlp", "hidden": (4,)},
        "batch_size": 4,
        "num_steps": 3,
        "log_every": 1,
        "checkpoint_every": 1,
        "chain": (("backprop", {}), ("sgd", {"learning_rate": 0.1})),
    }


MISTAKES = {
    "missing set": ({"name": "mnist"}, "config.data: .*'mnist' is not on this machine"),
    "unknown set": ({"name": "mnits"}, "'mnits'.*Did you mean 'mnist'.*digits"),
    "preprocess": ({"name": "mnist", "preprocess": "pca"}, "'zca'"),
    "argument": ({"name": "mnist", "shift": 1.0}, "'shift'.*preprocess"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_config(mistake):
    data, message = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        job.prepare(config.read(settings(**data)))


def test_a_run_does_not_go_on_with_other_data(mnist, monkeypatch, tmp_path):
    made, workdir = settings(name="mnist"), tmp_path / "run"
    monkeypatch.setenv("BPFREE_DATA_DIR", str(tmp_path))
    with jax.numpy_dtype_promotion("standard"):
        result = fit(made, workdir, stop_after=1)
        assert result.params["Dense_0"]["kernel"].shape == (784, 4)
        labels = "t10k-labels-idx1-ubyte"
        files = {**idx_files(), labels: idx(LABELS[1:7])}
        know(monkeypatch, "mnist", files)
        mnist.rename(tmp_path / "mnist_old")  # where the files lie does not matter
        (tmp_path / "moved" / "mnist").mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "moved" / "mnist" / file).write_bytes(content)
        monkeypatch.setenv("BPFREE_DATA_DIR", str(tmp_path / "moved"))
        with pytest.raises(ConfigError, match=f"these differ: data.sha256.{labels}. Cho"):
            fit(made, workdir)


# -------------------------------------------------------------------------------- TFDS


def test_the_digits_need_neither_tfds_nor_pillow():
    code = (
        "import sys, bpfree; from bpfree.data import digits, images; digits.load()\n"
        "found = [m for m in ('tensorflow_datasets', 'PIL') if m in sys.modules]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def tfds(monkeypatch):
    if tensorflow_datasets is None:
        pytest.skip("tensorflow-datasets is missing: pip install -e '.[tfds]'")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", tensorflow_datasets)
    return tensorflow_datasets


TFDS = {"mnist": (28, 28, 1), "cifar100": (32, 32, 3), "imagenet_resized/8x8": (8, 8, 3)}


@pytest.mark.parametrize("name", TFDS)
def test_tfds_path_on_mock_data(name, tfds, tmp_path):
    with tfds.testing.mock_data(num_examples=20):
        first, second = images.load(name), images.load(name)
    assert first.train["x"].shape == (18, *TFDS[name])
    assert first.source["from"].startswith(f"TFDS, {name}/")
    assert first.source["train"] == 18 and first.source["test"] == 20
    assert set(first.source["sha256"]) == set(catalogue.SETS[name].splits)
    assert first.source == second.source
    assert 0 <= first.train["label"].min()
    assert first.train["label"].max() < first.num_classes


def test_a_copy_that_does_not_fit_is_read_one_by_one(tfds):
    with tfds.testing.mock_data(num_examples=20):
        whole, lazy = images.load("mnist"), images.load("mnist", lazy=True)
        np.testing.assert_equal(first(lazy.train, 18), whole.train)
        with pytest.raises(ValueError, match="use preprocess='none'"):
            images.load("mnist", lazy=True, preprocess="centre")
    np.testing.assert_equal(lazy.validation, whole.validation)
    np.testing.assert_equal(lazy.test, whole.test)
    assert lazy.source["train"] == 18 and set(lazy.source["sha256"]) == {"test"}


def prepare(tfds, monkeypatch, directory):
    """A copy of `mnist` as TFDS stores it, made without TensorFlow of tiny images."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.builder("mnist").version

        def _info(self):
            # the stock builder's Image is encoded by TensorFlow; stored, it is a string
            scalar = tfds.features.Scalar
            features = {"image": scalar(np.str_), "label": scalar(np.int64)}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            rows = {"train": (0, 20), "test": (20, 26)}
            return {part: self._generate_examples(*r) for part, r in rows.items()}

        def _generate_examples(self, *rows):
            for i in range(*rows):
                file = io.BytesIO()
                image.fromarray(BYTES[i, :784].reshape(28, 28)).save(file, "png")
                yield i, {"image": file.getvalue(), "label": LABELS[i]}

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(directory))
    Mnist(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory / "mnist" / str(Mnist.VERSION)


def test_a_copy_prepared_by_tfds_is_read(tfds, monkeypatch, tmp_path):
    folder = prepare(tfds, monkeypatch, tmp_path)
    data = images.load("mnist")
    assert data.source["from"] == f"TFDS, mnist/{folder.name}"
    found = np.concatenate([data.train["x"], data.validation["x"]]).reshape(20, -1) * 255
    assert sorted(map(tuple, found)) == sorted(map(tuple, BYTES[:20, :784].astype("f4")))
    (file,) = folder.glob("*train*")
    os.truncate(file, 1000)
    with pytest.raises(raw.DataError, match=f"copy in {folder} cannot be read"):
        images.load("mnist")


def test_a_copy_that_tfds_has_not_prepared(tfds, monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    with pytest.raises(raw.DataError, match="TFDS has no array_record copy.*TensorFlow"):
        images.load("cifar100")


@pytest.mark.parametrize("name", [n for n, e in catalogue.SETS.items() if e.splits])
def test_the_catalogue_agrees_with_tfds(name, tfds, tmp_path):
    info = tfds.builder(name, data_dir=tmp_path).info
    assert info.features["label"].num_classes == catalogue.SETS[name].num_classes


# -------------------------------------------------------------------------- real files

DIRECTORY, DEBIAN = os.environ.get("BPFREE_DATA_DIR", ""), places.DEBIAN
REAL = {"mnist": 55000, "fashion_mnist": 55000, "tiny_imagenet_20": 4680}


@pytest.mark.skipif("BPFREE_DATA_DIR" not in os.environ, reason="BPFREE_DATA_DIR not set")
@pytest.mark.parametrize("name", REAL)
def test_real_files(name, monkeypatch):
    monkeypatch.setattr(places, "DEBIAN", DEBIAN)
    try:
        data = images.load(name, dir=DIRECTORY)
    except raw.DataError as error:
        if "not on this machine" in str(error):
            pytest.skip(f"{name} is not here")
        raise
    assert data.source["train"] == REAL[name] == len(data.train["x"])
    counts = np.bincount(data.test["label"])
    assert len(counts) == data.num_classes and counts.min() > 0.7 * counts.max()
