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

import numpy as np

from bpfree.data import Batch, Dataset, Examples, places, tfds
from bpfree.data.augment import flip_and_crop
from bpfree.data.catalogue import SETS
from bpfree.data.preprocess import EPSILON, Kind, preprocessed
from bpfree.data.raw import Part


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
    found, record = places.read(
        name, entry, dir, lambda splits: tfds.read(name, splits, lazy=lazy)
    )
    if isinstance(found.train, Examples) and preprocess != "none":
        raise ValueError(
            f"preprocess={preprocess!r} is fitted on the training part in memory; with "
            "loader='grain' this set is read one by one: use preprocess='none'"
        )
    parts = (*_split(found.train), _batch(found.test))
    data = places.dataset(name, entry, record, *parts, changes)
    return preprocessed(data, preprocess, epsilon)


def _split(train: Part | Examples) -> tuple[Batch | Examples, Batch]:
    """The training part without its end, and that end, for validation."""
    if not isinstance(train, Examples):
        return places.without_end(_batch(train))
    size = len(train) - places.held_out(len(train))
    rows = [train[i] for i in range(size, len(train))]
    end = Part(*(np.stack([e[k] for e in rows]) for k in ("image", "label")))

    def read(i):
        image, label = train[i]["image"], train[i]["label"]
        return {k: v[0] for k, v in _batch(Part(image[None], label[None])).items()}

    return Examples(size, read), _batch(end)


def _batch(part: Part) -> Batch:
    return {"x": part.images.astype(np.float32) / np.float32(255), "label": part.labels}
