"""What a trained model says of a part of the data: a table, a matrix, a picture.

predictions.csv   example, position (of sequences), label and prediction
confusion.csv     of classes: how often a label (row) was predicted as a class
picture.png       this matrix; of real labels, predictions against them
"""

import csv
from pathlib import Path

import numpy as np

from bpfree.training.losses import aligned


def predicted(outputs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The predictions, like the labels: of classes the one with the largest logit.

    Raises ValueError: outputs of another shape.
    """
    if np.issubdtype(label.dtype, np.floating):
        return np.asarray(aligned(outputs, label))
    if outputs.shape[:-1] != label.shape:
        raise ValueError(
            f"the model's outputs have shape {outputs.shape}, and the labels "
            f"{label.shape}: they are no logits of classes"
        )
    return outputs.argmax(-1)


def write(folder: Path, outputs: np.ndarray, label: np.ndarray, title: str) -> list[str]:
    """Write the files into a folder, made if need be; their paths.

    Args:
      outputs: of the model, for all examples.
      label: what they should be, whole numbers for classes.
      title: of the picture.

    Raises ValueError: as `predicted`.
    """
    from sklearn import metrics  # slow to import

    prediction = predicted(outputs, label)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "predictions.csv", folder / "picture.png"]
    positions = ["position"] if label.ndim == 2 else []
    positions = positions or [f"position_{i}" for i in range(1, label.ndim)]
    rows = ([*i, label[i].item(), prediction[i].item()] for i in np.ndindex(label.shape))
    _write(paths[0], ["example", *positions, "label", "prediction"], rows)
    if np.issubdtype(label.dtype, np.floating):
        display = metrics.PredictionErrorDisplay(
            y_true=label.ravel(), y_pred=prediction.ravel()
        )
        _picture(paths[1], title, display, kind="actual_vs_predicted")
        return list(map(str, paths))
    names = list(range(outputs.shape[-1]))
    counts = metrics.confusion_matrix(label.ravel(), prediction.ravel(), labels=names)
    rows = ([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    _write(folder / "confusion.csv", ["label", *names], rows)
    display = metrics.ConfusionMatrixDisplay(counts)
    _picture(paths[1], title, display, cmap="Blues", include_values=len(names) <= 20)
    return list(map(str, [*paths, folder / "confusion.csv"]))


def _write(path: Path, head, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def _picture(path: Path, title: str, display, **options) -> None:
    """What one of scikit-learn's displays draws."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    display.plot(ax=axes, **options)
    axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=120)
