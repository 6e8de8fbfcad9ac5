"""The picture of a sweep: panels of curves or of final values, as the recipe asks for them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Columns of a run's curves.csv that a curve can be drawn against.
ALONG = ("epoch", "step", "seconds")


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        x: `epoch`, `step` or `seconds` for a curve of each run; else a key that the sweep varies.
        y: a metric such as `val/accuracy`; against a key also `seconds` or `steps` of the whole fit.
    """

    x: str
    y: str


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a run.

    Args:
        label: what sets it apart from the others.
        values: of the keys that the sweep varies.
        folder: holds `curves.csv`.
        finals: metrics, `seconds` and `steps` at its end; empty if it did not complete.
    """

    label: str
    values: Mapping[str, str]
    folder: str
    finals: Mapping[str, float]


def draw(runs: Sequence[Drawn], panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side. Runs of the same value, such as those of several seeds, are one point,
    their mean, with a bar from the lowest to the highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if panel.x in ALONG:
            _draw_curves(axes, runs, panel)
        else:
            _draw_finals(axes, runs, panel)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _draw_curves(axes: Axes, runs: Sequence[Drawn], panel: Panel) -> None:
    far = []
    for run in runs:
        points = _curve(run, panel)
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=run.label)
            far.append((points[0][0], points[-1][0]))
    if far:
        axes.legend()
    ends = [last for _, last in far]
    if panel.x != "epoch" and ends and max(ends) > 30 * min(ends) > 0:
        axes.set_xscale("log")


def _curve(run: Drawn, panel: Panel) -> list[tuple[float, float]]:
    path = Path(run.folder) / "curves.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(float(row[panel.x]), float(row[panel.y])) for row in rows if row.get(panel.y)]


def _draw_finals(axes: Axes, runs: Sequence[Drawn], panel: Panel) -> None:
    groups: dict[str, list[float]] = {}
    for run in runs:
        found = groups.setdefault(run.values.get(panel.x, "?"), [])
        if panel.y in run.finals:
            found.append(run.finals[panel.y])
    names = list(groups)
    numbers = _numbers(names)
    places = range(len(names)) if numbers is None else numbers
    shown = [(place, values) for place, values in zip(places, groups.values(), strict=True) if values]
    means = [sum(values) / len(values) for _, values in shown]
    below = [mean - min(values) for mean, (_, values) in zip(means, shown, strict=True)]
    above = [max(values) - mean for mean, (_, values) in zip(means, shown, strict=True)]
    axes.errorbar([place for place, _ in shown], means, yerr=(below, above), marker="o", capsize=3)
    if numbers is None:
        axes.set_xticks(list(places), names)
    elif min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        axes.set_xscale("log")
    for name, place in zip(names, places, strict=True):
        if not groups[name]:
            told = axes.annotate(
                f"{name}: failed", (place, 0.02), xycoords=("data", "axes fraction"), rotation=90
            )
            told.set_in_layout(False)


def _numbers(names: Sequence[str]) -> list[float] | None:
    try:
        return [float(name) for name in names]
    except ValueError:
        return None
