"""Where the named sets lie, what to do if they lie nowhere, and what the record says."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpfree.data import Augment, Batch, Dataset, Examples, made_up, raw, tfds
from bpfree.data.catalogue import Entry

FromTfds = Callable[[tuple[str, ...]], tuple[Any, dict[str, Any]]]

DEBIAN = Path("/usr/share/datasets")
HELD_OUT = 5000


def read(
    name: str, entry: Entry, given: str, from_tfds: FromTfds | None = None
) -> tuple[Any, dict[str, Any]]:
    """What the parser makes of the raw files, and the record of them; or TFDS's copy.

    Args:
      given: the directory that the config names, or ""; or `made_up.DIR`.
      from_tfds: names of the parts -> TFDS's copy; None: there is no such thing.

    Raises DataError: a file is missing, cut off or another one; or the set is in no known
    place, with what to do.
    """
    if given == made_up.DIR:
        return made_up.of(name, entry), {"from": made_up.DIR}
    directory = given or os.environ.get("BPFREE_DATA_DIR", "")
    for folder in folders(name, entry, directory):
        if any(raw.find(folder, file) for file in entry.sha256):
            files = raw.contents(folder, entry.sha256)
            record = {"from": str(folder), "sha256": dict(entry.sha256)}
            return raw.PARSERS[entry.format](files), record
    problem = "TFDS does not have it"
    if entry.splits and from_tfds is not None:
        try:
            return from_tfds(entry.splits)
        except tfds.Missing as error:
            problem = str(error)
    raise raw.DataError(missing(name, entry, directory, problem))


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
    if entry.splits:
        ways.append(
            f"have TFDS prepare it ({problem}). Reading the copy needs pip install "
            "'bpfree[tfds]'. Preparing it needs the internet and, once, TensorFlow:\n"
            "      pip install 'bpfree[tfds,tfds-prepare]'\n"
            '      python -c "import tensorflow_datasets as tfds; tfds.builder('
            f"'{name}', file_format='array_record').download_and_prepare()\""
        )
    listed = "".join(f"\n  * {way}" for way in ways)
    return f"the data set {name!r} is not on this machine. Do one of these:{listed}"


def held_out(size: int) -> int:
    """How many examples at the end of a training part are for validation."""
    return min(HELD_OUT, size // 10)


def without_end(train: Batch) -> tuple[Batch, Batch]:
    """The training part without its last examples, and these, for validation."""
    count = held_out(len(train["label"]))
    kept = {k: v[:-count] for k, v in train.items()}
    return kept, {k: v[-count:] for k, v in train.items()}


def dataset(
    name: str,
    entry: Entry,
    record: dict[str, Any],
    train: Batch | Examples,
    validation: Batch,
    test: Batch,
    augment: Augment | None = None,
) -> Dataset:
    """The parts as a `Dataset`, with the record of where they are from."""
    count = len(validation["label"])
    split = f"validation: the last {count} examples of the training part"
    source = {"name": name, **record, "split": split}
    if entry.note:
        source["note"] = entry.note
    classes = entry.num_classes
    return Dataset(train, validation, test, classes, source, augment).counted()
