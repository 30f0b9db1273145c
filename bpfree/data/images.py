"""Image sets by name, from whichever of these places has them; the first is taken:

  1. raw files in the folder `<dir>/<name>` (hyphens for underscores will do), where
     `dir` is the argument, or else the environment variable BPFREE_DATA_DIR;
  2. raw files installed by Debian's package;
  3. a copy that TFDS has prepared.

The record says which it was. Raw files have to be the files we know, by SHA-256; nothing
is downloaded, and no set stands in for another.

The official test part stays the test part. Validation is the last 5,000 examples of the
training part in the order of its source (a tenth of it, where that is less).

A set is held in memory and on the device whole, as float32: MNIST takes 0.2 GB, CIFAR-10
0.7 GB, `imagenet_resized/32x32` 16 GB. TFDS's copies and JPEG copies are decoded at every
start, some thousands of images a second. `config.data.loader = "grain"` leaves the
training part off the device, and a copy prepared by TFDS on the disk.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from bpfree.data import Batch, Dataset, Examples, raw, sizes, tfds
from bpfree.data.augment import flip_and_crop
from bpfree.data.catalogue import SETS, Entry
from bpfree.data.preprocess import EPSILON, Kind, preprocessed
from bpfree.data.raw import DataError, Part, Raw

DEBIAN = Path("/usr/share/datasets")
HELD_OUT = 5000


def load(
    name: str,
    *,
    dir: str = "",
    flip: bool = False,
    crop: int = 0,
    preprocess: Kind = "none",
    epsilon: float = EPSILON,
    lazy: bool = False,
) -> Dataset:
    """The image set `name`: x float32 (N, height, width, channels), pixels 0 .. 1.

    Args:
      name: one of `catalogue.SETS`.
      dir: where the folders of raw files are; "": what BPFREE_DATA_DIR says.
      flip, crop: random changes of training images, see `bpfree.data.augment`.
      preprocess: what is done to the inputs, see `bpfree.data.preprocess`.
      epsilon: added to variances there.
      lazy: leave the training part of a copy prepared by TFDS where it is; `train` is
        then `Examples`, read one by one (and its checksum is not taken).

    Raises DataError: the set is in no known place, with what to do; or a file is missing,
    cut off, damaged or another one, with its name. ValueError: crop < 0; preprocessing
    of a training part that is not in memory.
    """
    changes, entry = flip_and_crop(flip, crop), SETS[name]
    directory = dir or os.environ.get("BPFREE_DATA_DIR", "")
    found, record = _read(name, entry, directory, lazy)
    if isinstance(found.train, Examples) and preprocess != "none":
        raise ValueError(
            f"preprocess={preprocess!r} is fitted on the training part in memory; with "
            "loader='grain' this set is read one by one: use preprocess='none'"
        )
    train, validation, held_out = _split(found.train)
    split = f"validation: the last {held_out} examples of the training part"
    source = {"name": name, **record, "split": split}
    if entry.note:
        source["note"] = entry.note
    data = Dataset(
        train=train,
        validation=validation,
        test=_batch(found.test),
        num_classes=entry.num_classes,
        source=source,
        augment=changes,
    )
    data = data._replace(source={**source, **sizes(data)})
    return preprocessed(data, preprocess, epsilon)


def _split(train: Part | Examples) -> tuple[Batch | Examples, Batch, int]:
    """The training part without its end, that end for validation, and its length."""
    size = len(train if isinstance(train, Examples) else train.labels)
    held_out = min(HELD_OUT, size // 10)
    if isinstance(train, Examples):
        rows = [train[i] for i in range(size - held_out, size)]
        end = Part(*(np.stack([e[k] for e in rows]) for k in ("image", "label")))

        def read(i):
            image, label = train[i]["image"], train[i]["label"]
            return {k: v[0] for k, v in _batch(Part(image[None], label[None])).items()}

        return Examples(size - held_out, read), _batch(end), held_out
    kept = Part(*(array[:-held_out] for array in train))
    end = Part(*(array[-held_out:] for array in train))
    return _batch(kept), _batch(end), held_out


def _batch(part: Part) -> Batch:
    return {"x": part.images.astype(np.float32) / np.float32(255), "label": part.labels}


def _read(
    name: str, entry: Entry, directory: str, lazy: bool
) -> tuple[Raw, dict[str, Any]]:
    for folder in folders(name, entry, directory):
        if any(raw.find(folder, file) for file in entry.sha256):
            files = raw.contents(folder, entry.sha256)
            record = {"from": str(folder), "sha256": dict(entry.sha256)}
            return entry.parse(files), record
    problem = "TFDS does not have it"
    if entry.splits is not None:
        try:
            return tfds.read(name, entry.splits, lazy)
        except tfds.Missing as error:
            problem = str(error)
    raise DataError(missing(name, entry, directory, problem))


def folders(name: str, entry: Entry, directory: str) -> list[Path]:
    """Where the raw files of a set may be."""
    name = entry.folder or name
    names = dict.fromkeys([name, name.replace("_", "-")])
    folders = [Path(directory) / n for n in names] if directory else []
    return folders + ([DEBIAN / name.replace("_", "-")] if entry.debian else [])


def missing(name: str, entry: Entry, directory: str, problem: str) -> str:
    """What to do about a set that is in no known place; `problem` is TFDS's."""
    ways = []
    if entry.sha256:
        place = directory or "the directory that BPFREE_DATA_DIR names (it is not set)"
        ways.append(
            f"put {', '.join(entry.sha256)} into the folder {entry.folder or name} of "
            f"{place}; BPFREE_DATA_DIR or config.data.dir may name another"
        )
    if entry.debian:
        ways.append(f"on Debian: apt-get install {entry.debian}")
    if entry.splits is not None:
        ways.append(
            f"have TFDS prepare it ({problem}). Reading the copy needs pip install -e "
            "'.[tfds]'. Preparing it needs the internet and, once, TensorFlow:\n"
            "      pip install -e '.[tfds,tfds-prepare]'\n"
            '      python -c "import tensorflow_datasets as tfds; tfds.builder('
            f"'{name}', file_format='array_record').download_and_prepare()\""
        )
    listed = "".join(f"\n  * {way}" for way in ways)
    return f"the data set {name!r} is not on this machine. Do one of these:{listed}"
