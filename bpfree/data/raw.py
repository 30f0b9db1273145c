"""Raw files of sets: checked by SHA-256 first, then read."""

import csv
import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpfree.data import Examples


class DataError(ValueError):
    """A data set that is missing or not what it should be; says what to do."""


class Part(NamedTuple):
    """Examples and their labels int32 (N,).

    Attributes:
      images: uint8 (N, height, width, channels); of texts, strings (N,); of recordings,
        arrays (events, 4), (N,).
    """

    images: np.ndarray
    labels: np.ndarray


class Raw(NamedTuple):
    """A set as it comes: the official training and test parts.

    Attributes:
      train: `Examples` of {"image", "label"} if it is read one by one.
    """

    train: Part | Examples
    test: Part


def find(folder: Path, name: str) -> Path | None:
    """The file `name` of a folder, or its gzip `name.gz`; None if there is neither."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def contents(folder: Path, sha256: Mapping[str, str]) -> dict[str, bytes]:
    """Every file of a set, gunzipped, with its checksum compared.

    Args:
      folder: where the files are.
      sha256: {file name without .gz: SHA-256 of the file's content, gunzipped}.

    Raises DataError naming the first file that is missing, cut off or another one.
    """
    return {name: _content(folder, name, digest) for name, digest in sha256.items()}


def _content(folder: Path, name: str, expected: str) -> bytes:
    path = find(folder, name)
    if path is None:
        raise DataError(f"{folder / name} (or {name}.gz) is missing: add it")
    try:
        content = path.read_bytes()
        if path.name == f"{name}.gz":
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is cut off or no gzip file ({error}): copy it anew"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{path} is not the file expected: its content ({len(content)} bytes, "
            f"gunzipped) has SHA-256 {found}, expected {expected}. It may be cut off, "
            "damaged, or another set's file of that name: copy it anew"
        )
    return content


# ---------------------------------------------------- parsers: {file: bytes} -> Raw


def parse_idx(files: Mapping[str, bytes]) -> Raw:
    """The four files of MNIST and its likes."""

    def part(name):
        images = _idx(files[f"{name}-images-idx3-ubyte"])[..., None]
        labels = _idx(files[f"{name}-labels-idx1-ubyte"])
        return Part(images, labels.astype(np.int32))

    return Raw(part("train"), part("t10k"))


def _idx(content: bytes) -> np.ndarray:
    """An IDX array of bytes: 0 0 8 rank, big-endian sizes (rank, 4), items."""
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def parse_cifar(files: Mapping[str, bytes]) -> Raw:
    """The "binary version" of CIFAR-10 or CIFAR-100, one tar.gz.

    A record is one label (CIFAR-100: coarse, then fine, which we take) and 3 x 32 x 32
    pixels.
    """
    (archive,) = files.values()
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for item in sorted(tar.getmembers(), key=lambda item: item.name):
            stem, _, suffix = item.name.rpartition("/")[2].partition(".")
            file = tar.extractfile(item) if suffix == "bin" else None
            if file is not None:
                part = "test" if stem.startswith("test") else "train"
                parts[part].append(np.frombuffer(file.read(), np.uint8))
    width = 3073 if any("cifar-10-" in name for name in files) else 3074
    return Raw(*(_records(np.concatenate(p), width) for p in parts.values()))


def _records(content: np.ndarray, width: int) -> Part:
    rows = content.reshape(-1, width)
    images = rows[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Part(images, rows[:, -3073].astype(np.int32))


def parse_csv(files: Mapping[str, bytes]) -> Raw:
    """Two files of rows "label,text", the training part first; "images" are strings."""
    return Raw(*(_rows(content.decode()) for content in files.values()))


def _rows(content: str) -> Part:
    labels, texts = zip(*csv.reader(io.StringIO(content, newline="")), strict=True)
    return Part(np.array(texts, object), np.array(labels, np.int32))


def parse_jpegs(files: Mapping[str, bytes]) -> Raw:
    """One npz of JPEG files laid end to end.

    Entries: `{part}_bytes`, `{part}_len`, `{part}_labels` of the parts train and test (or
    val); `header`, if there, is the common beginning of all files, whose two-byte end
    marks are then left out.
    """
    (content,) = files.values()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        begin = arrays["header"].tobytes() if "header" in arrays else b""
        parts = []
        for part in ("train", "test" if "test_len" in arrays else "val"):
            ends = np.cumsum(arrays[f"{part}_len"].astype(np.int64))
            joined = arrays[f"{part}_bytes"].tobytes()
            jpegs = [
                begin + joined[i:j] + (b"\xff\xd9" if begin else b"")
                for i, j in zip([0, *ends[:-1]], ends, strict=True)
            ]
            parts.append(Part(_decode(jpegs), arrays[f"{part}_labels"].astype(np.int32)))
    return Raw(*parts)


def parse_events(files: Mapping[str, bytes]) -> Raw:
    """One npz of event recordings laid end to end; "images" are arrays (n, 4).

    Entries: `{part}_t_ms`, `_p`, `_y`, `_x` of the events, `_len` and `_labels` of the
    recordings. A row of a recording is (milliseconds, polarity, y, x).
    """
    (content,) = files.values()
    parts = []
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for part in ("train", "test"):
            columns = [
                arrays[f"{part}_{k}"].astype(np.int32) for k in ("t_ms", "p", "y", "x")
            ]
            ends = np.cumsum(arrays[f"{part}_len"].astype(np.int64))
            recordings = np.split(np.stack(columns, 1), ends[:-1])
            events = np.empty(len(recordings), object)
            events[:] = recordings
            parts.append(Part(events, arrays[f"{part}_labels"].astype(np.int32)))
    return Raw(*parts)


def parse_graph(files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The arrays of one npz: a graph with binary features as CSR, labels and a split."""
    (content,) = files.values()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _decode(jpegs: list[bytes]) -> np.ndarray:
    from PIL import Image

    def pixels(jpeg: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(pixels, jpegs)))


PARSERS: dict[str, Callable[[Mapping[str, bytes]], Any]] = {
    "idx": parse_idx,
    "cifar": parse_cifar,
    "csv": parse_csv,
    "jpegs": parse_jpegs,
    "events": parse_events,
    "graph": parse_graph,
}
