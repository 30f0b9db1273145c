"""The sets we know by name: their files and checksums, and what TFDS calls them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bpfree.data import raw


class Entry(NamedTuple):
    """A set, and where it may come from.

    Attributes:
      num_classes: labels are 0 .. num_classes - 1.
      sha256: {file name without .gz: SHA-256 of its gunzipped content}; empty: not read
        from raw files.
      parse: from the contents of those files to arrays.
      splits: TFDS's names of the training and the test part; None: not in TFDS.
      note: what the record must say of these files.
      debian: the package that installs them, if any.
      folder: where the raw files lie, if not in a folder of the set's name.
      shape: of an image (height, width, channels), of a frame of events (height, width,
        2), of a graph's features (nodes, words); () for texts.
      sizes: examples in the training part, validation included, and in the test part.
    """

    num_classes: int
    sha256: Mapping[str, str] = {}
    parse: Callable[[Mapping[str, bytes]], Any] = raw.parse_idx
    splits: tuple[str, str] | None = ("train", "test")
    note: str = ""
    debian: str | None = None
    folder: str = ""
    shape: tuple[int, ...] = ()
    sizes: tuple[int, int] = (0, 0)


# What TFDS registers for the archives of the CIFAR sets; for MNIST and Fashion-MNIST of
# the gunzipped content, which a repacked gzip file does not change.
SETS = {
    "mnist": Entry(
        10,
        shape=(28, 28, 1),
        sizes=(60_000, 10_000),
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738"
            "ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5"
            "333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77"
            "db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351"
            "222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": Entry(
        10,
        shape=(28, 28, 1),
        sizes=(60_000, 10_000),
        sha256={
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f8388776"
            "8d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec29"
            "4ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe0"
            "87ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494"
            "c5af83dab82d92729df917d7dec38c34",
        },
        debian="dataset-fashion-mnist",
    ),
    "cifar10": Entry(
        10,
        shape=(32, 32, 3),
        sizes=(50_000, 10_000),
        sha256={
            "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d6"
            "8f9f25eb1ed8d9ddda3db29a59bca1dd"
        },
        parse=raw.parse_cifar,
    ),
    "cifar100": Entry(
        100,
        shape=(32, 32, 3),
        sizes=(50_000, 10_000),
        sha256={
            "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed"
            "807d710a4eb253b1f2a199162a40d8ec"
        },
        parse=raw.parse_cifar,
    ),
    "cifar10_jpeg": Entry(
        10,
        shape=(32, 32, 3),
        sizes=(50_000, 10_000),
        sha256={
            "cifar10_jpeg.npz": "41e82a34836df5a9d7adeafb941e6e97"
            "6441bcfb915f8c0979c97fa529b318cb"
        },
        parse=raw.parse_jpegs,
        splits=None,
        note="JPEG copy of CIFAR-10 (quality about 75), not its exact pixels",
    ),
    "tiny_imagenet_20": Entry(
        20,
        shape=(64, 64, 3),
        sha256={
            "tiny_imagenet_20.npz": "98b72b32c3e48b8451353bce6fcd1a88"
            "e82340e926ff2c83fe835c0de278dea3"
        },
        parse=raw.parse_jpegs,
        splits=None,
        note="20 of the 200 classes of Tiny ImageNet; its official validation images are "
        "the test part",
    ),
    "kmnist": Entry(10, shape=(28, 28, 1), sizes=(60_000, 10_000)),
    "svhn_cropped": Entry(10, shape=(32, 32, 3), sizes=(73_257, 26_032)),
    **{
        f"imagenet_resized/{side}x{side}": Entry(
            1000,
            shape=(side, side, 3),
            sizes=(1_281_167, 50_000),
            splits=("train", "validation"),
            note="the official validation images are the test part",
        )
        for side in (8, 16, 32, 64)
    },
}

TEXTS = {
    "ag_news_subset": Entry(4),
    "ag_news_5k": Entry(
        4,
        sha256={
            "train5k.csv": "f97bbf147def6577c1a4c465611b14de"
            "a4ecf57e48c39402d924644f8250d519",
            "test.csv": "f96c98b801ec6aa8656d2fa684f8d7e2"
            "bfd62fe3e9c89a9a16bac52b67c4f335",
        },
        parse=raw.parse_csv,
        splits=None,
        note="AG News with 4,999 training items in place of the official 120,000; the "
        "test part is the official one",
        folder="ag_news",
    ),
    "trec": Entry(
        6,
        sha256={
            "trec_train.csv": "0c93aa8cf23f5a945f2a56d34d23ead6"
            "aa06221b5641637b9edfc557d849cc9d",
            "trec_test.csv": "163c5ab23c5c318d6fcad0dc7cb72e78"
            "fade69e696dff7e2c74e88cb564fc432",
        },
        parse=raw.parse_csv,
        splits=None,
        note="TREC questions as rows of label,text, tokenised at their source",
        folder="text_small",
    ),
}

EVENTS = {
    "nmnist_small": Entry(
        10,
        shape=(34, 34, 2),
        sha256={
            "nmnist_small.npz": "09b4f65be803aa6efdf1196d089c030d"
            "204f2a1c9957971dadbde5f049eaa0ed"
        },
        parse=raw.parse_events,
        splits=None,
        note="1,100 recordings of N-MNIST's 70,000, times in whole milliseconds",
    ),
}

GRAPHS = {
    "cora": Entry(
        7,
        shape=(2708, 1433),
        sha256={
            "cora.npz": "09d8b29f8aab489ff76230ba9934b05bd69002eed4d7dcfa507b1f06e02d6f87"
        },
        parse=raw.parse_graph,
        splits=None,
        note="the public Planetoid split",
        folder="planetoid",
    ),
    "citeseer": Entry(
        6,
        shape=(3327, 3703),
        sha256={
            "citeseer.npz": "a9bc15d47f877a9ae5c7ed4704820926"
            "6c820263c24930953064e9920cb03fc4"
        },
        parse=raw.parse_graph,
        splits=None,
        note="the public Planetoid split",
        folder="planetoid",
    ),
}
