"""Sets of event-camera recordings by name, as spike counts in time bins.

Raw files, their places, checksums and validation are those of `bpfree.data.images`.
"""

import numpy as np

from bpfree.data import Batch, Dataset, places
from bpfree.data.catalogue import EVENTS
from bpfree.data.raw import Part

SIDE = 34  # pixels of the sensor that recorded N-MNIST


def load(
    name: str, *, dir: str = "", steps: int = 30, milliseconds: int = 300, pool: int = 1
) -> Dataset:
    """The set `name`: x float32 (N, steps, height, width, 2), whether anything happened.

    Args:
      name: one of `catalogue.EVENTS`.
      dir: where the folders of raw files are; "": what BPFREE_DATA_DIR says.
      steps: time bins; the first `milliseconds` of a recording are cut into so many.
      pool: pixels of the sensor in a pixel of x, along either side.

    Raises DataError: as `images.load`. ValueError: a count below 1.
    """
    if min(steps, milliseconds, pool) < 1:
        raise ValueError(
            f"steps={steps}, milliseconds={milliseconds} and pool={pool} must be at "
            "least 1"
        )
    entry = EVENTS[name]
    parts, record = places.read(name, entry, dir)

    def batch(part: Part) -> Batch:
        x = np.stack([binned(r, steps, milliseconds, pool) for r in part.images])
        return {"x": x, "label": part.labels}

    train, test = map(batch, parts)
    return places.dataset(name, entry, record, *places.without_end(train), test)


def binned(recording: np.ndarray, steps: int, milliseconds: int, pool: int) -> np.ndarray:
    """Rows (ms, polarity, y, x) to zeros and ones (steps, height, width, 2)."""
    time, polarity, y, x = recording.T
    side = -(-SIDE // pool)
    frames = np.zeros((steps, side, side, 2), np.float32)
    inside = time < milliseconds
    when = time * steps // milliseconds
    at = (when[inside], y[inside] // pool, x[inside] // pool, polarity[inside])
    frames[at] = 1
    return frames
