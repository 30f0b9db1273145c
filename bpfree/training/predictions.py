"""What a trained model says of a part of the data: a table, a matrix, a picture.

predictions.csv   example, position (of sequences), label and prediction
confusion.csv     of classes: how often a label (row) was predicted as a class
picture.png       this matrix; of real labels, predictions against them
"""

import csv
from pathlib import Path

import numpy as np

from bpfree.training.loss_functions import aligned, logits


def predicted(outputs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The predictions, like the labels: of classes the one with the largest logit.

    Raises ValueError: outputs of another shape.
    """
    if np.issubdtype(label.dtype, np.floating):
        return np.asarray(aligned(outputs, label))
    return logits(outputs, label).argmax(-1)


def write(folder: Path, outputs: np.ndarray, label: np.ndarray, title: str) -> list[str]:
    """Write the files into a folder, made if need be; their paths.

    Args:
      outputs: of the model, for all examples.
      label: what they should be, whole numbers for classes.
      title: of the picture.

    Raises ValueError: as `predicted`.
    """
    prediction = predicted(outputs, label)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "predictions.csv", folder / "picture.png"]
    positions = ["position"] if label.ndim == 2 else []
    positions = positions or [f"position_{i}" for i in range(1, label.ndim)]
    rows = ([*i, label[i].item(), prediction[i].item()] for i in np.ndindex(label.shape))
    _write(paths[0], ["example", *positions, "label", "prediction"], rows)
    if np.issubdtype(label.dtype, np.floating):
        _picture(paths[1], title, lambda axes: _scatter(axes, prediction, label))
        return list(map(str, paths))
    from sklearn.metrics import confusion_matrix  # slow to import

    names = list(range(outputs.shape[-1]))
    counts = confusion_matrix(label.ravel(), prediction.ravel(), labels=names)
    rows = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    _write(folder / "confusion.csv", ["label", *names], rows)
    _picture(paths[1], title, lambda axes: _matrix(axes, counts))
    return list(map(str, [*paths, folder / "confusion.csv"]))


def _write(path: Path, head, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


# ----------------------------------------------------------------------------- pictures


def _picture(path: Path, title: str, draw) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=120)


def _matrix(axes, counts: np.ndarray) -> None:
    """Shares of each label in colour, with the counts if there is room for them."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, label="share of the label", shrink=0.8)
    axes.set(xlabel="prediction", ylabel="label")
    if len(counts) > 20:
        return
    axes.set(xticks=range(len(counts)), yticks=range(len(counts)))
    for (i, j), count in np.ndenumerate(counts):
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, count or "", ha="center", va="center", color=colour, size=8)


def _scatter(axes, prediction: np.ndarray, label: np.ndarray) -> None:
    """Predictions against labels, and the line on which they agree."""
    values = np.concatenate([prediction.ravel(), label.ravel()])
    ends = [values.min(), values.max()]
    axes.plot(ends, ends, color="0.6", lw=1, zorder=0)
    axes.scatter(label.ravel(), prediction.ravel(), s=12, alpha=0.6)
    axes.set(xlabel="label", ylabel="prediction")
    axes.grid(alpha=0.3)
