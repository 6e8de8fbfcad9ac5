"""The picture of an evaluation: one row for each part of the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dlblocks.evaluation.evaluate import Evaluation, Part

# Above this the numbers in a confusion matrix, and the names beside it, can't be read.
_READABLE = 25


def draw(evaluation: Evaluation, path: Path) -> None:
    """Draw a confusion matrix, values and residuals, or the labels' scores."""
    from matplotlib.figure import Figure

    task = evaluation.task.name
    columns = 2 if task == "regression" else 1
    width, height = _size(task, len(evaluation.names))
    figure = Figure(figsize=(width, height * len(evaluation.parts)), layout="constrained")
    grid = figure.subplots(len(evaluation.parts), columns, squeeze=False)
    for row, (split, part) in zip(grid, evaluation.parts.items(), strict=True):
        if task == "regression":
            _draw_values(row[0], row[1], part)
        elif task == "multilabel":
            _draw_labels(row[0], part)
        else:
            _draw_confusion(row[0], part, evaluation.names)
        row[0].set_title(f"{split}: {_main(evaluation, part)}, {len(part.true)} instances")
    figure.savefig(path, dpi=120)


def _main(evaluation: Evaluation, part: Part) -> str:
    name = evaluation.task.main_metric[0]
    return f"{name} {part.metrics[name]:.4g}"


def _size(task: str, names: int) -> tuple[float, float]:
    if task == "regression":
        return 9.0, 4.0
    if task == "multilabel":
        return max(6.0, 0.5 * min(names, 60)), 4.0
    side = min(max(4.5, 1.5 + 0.45 * names), 14.0)
    return side + 1, side


def _draw_values(left: Axes, right: Axes, part: Part) -> None:
    """Predicted against true values, and what is between them."""
    true, predicted = part.true.double().numpy(), part.predicted.double().numpy()
    for i in range(true.shape[1]):
        label = f"output {i}" if true.shape[1] > 1 else None
        left.plot(true[:, i], predicted[:, i], ".", alpha=0.5, label=label)
        right.plot(predicted[:, i], predicted[:, i] - true[:, i], ".", alpha=0.5, label=label)
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    left.plot(ends, ends, color="black", linewidth=1)
    left.set(xlabel="true", ylabel="predicted")
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="predicted", ylabel="predicted - true", title="residuals")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if true.shape[1] > 1:
            axes.legend()


def _draw_confusion(axes: Axes, part: Part, names: tuple[str, ...]) -> None:
    """Counts; the shade is the share of the true class."""
    counts = np.array(part.confusion)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) > _READABLE:
        return
    axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=color)


def _draw_labels(axes: Axes, part: Part) -> None:
    """Precision, recall and F1 of each label."""
    places = np.arange(len(part.classes))
    for i, score in enumerate(("precision", "recall", "f1")):
        axes.bar(places + 0.27 * (i - 1), [v[score] for v in part.classes.values()], 0.25, label=score)
    names = [f"{name} ({values['count']})" for name, values in part.classes.items()]
    axes.set_xticks(places, names, rotation=45)
    axes.set(xlabel="label (instances that have it)", ylim=(0, 1.02))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="lower right")
