"""The picture of a sweep: panels of curves or of final values, as the recipe asks for them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlblocks.errors import UserError
from dlblocks.tasks import MAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Columns of a run's curves.csv that a curve can be drawn against.
ALONG = ("epoch", "step", "seconds")
# Colour of the marks of runs without a result.
_FAILED = "tab:red"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        x: `epoch`, `step` or `seconds` for a curve of each run; else a key that the sweep varies.
        y: a metric such as `val/accuracy`, or `val/metric` for the main one of the task; against a key also `seconds` or `steps` of the whole fit. With
            `color`, another key that the sweep varies.
        color: a metric, or `diagnosis` (1 for trains, 0 for will not), for a heat map of two keys.
        where: only the runs with these values of other keys.
    """

    x: str
    y: str
    color: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def chosen(self, runs: Sequence[Drawn]) -> list[Drawn]:
        """The runs that it shows."""
        return [run for run in runs if all(run.values.get(k) == str(v) for k, v in self.where.items())]

    def named(self, metric: str) -> Panel:
        """With the task's main metric in place of the word that stands for it."""

        def named(name: str) -> str:
            return f"{name.removesuffix(MAIN)}{metric}" if name.endswith(f"/{MAIN}") else name

        return replace(self, y=named(self.y), color=None if self.color is None else named(self.color))


@dataclass(frozen=True)
class Drawn:
    """What is drawn of a run.

    Args:
        label: what sets it apart from the others.
        values: of the keys that the sweep varies.
        folder: holds `curves.csv`.
        finals: metrics, `seconds` and `steps` at its end; without metrics if it did not complete.
        status: how it ended.
        best: whether the metrics in `finals` are those of the best checkpoint, and not of the last epoch.
    """

    label: str
    values: Mapping[str, str]
    folder: str
    finals: Mapping[str, float]
    status: str = "completed"
    best: bool = False


def draw(runs: Sequence[Drawn], panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side. Runs of the same value, such as those of several seeds, are one point,
    their mean, with a bar from the lowest to the highest. One without a result is a cross."""
    from matplotlib.figure import Figure

    # Curves have a legend beside them.
    widths = [7.5 if panel.x in ALONG else 5.5 for panel in panels]
    figure = Figure(figsize=(sum(widths), 4), layout="constrained")
    for axes, panel in zip(
        figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0], panels, strict=True
    ):
        shown = panel.chosen(runs)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        if panel.color is not None:
            _draw_map(axes, shown, panel)
            continue
        if panel.x in ALONG:
            _draw_curves(axes, shown, panel)
        else:
            _draw_finals(axes, shown, panel)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _draw_curves(axes: Axes, runs: Sequence[Drawn], panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    far = []
    for run in runs:
        points = _curve(run, panel)
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=run.label)
            far.append((points[0][0], points[-1][0]))
        elif run.status != "completed":
            axes.plot([], [], "x", color=_FAILED, label=f"{run.label}: {run.status}")
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize="small")
    ends = [last for _, last in far]
    if panel.x == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif ends and max(ends) > 30 * min(ends) > 0:
        axes.set_xscale("log")


def read_curves(folder: str | Path) -> list[dict[str, float]]:
    """The rows of the `curves.csv` of a run, without empty cells; none if there is no such file.

    Raises:
        UserError: damaged; names the column and the line.
    """
    path = Path(folder) / "curves.csv"
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            return [_numbered(row, f"{path}: damaged; line {reader.line_num}") for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}).") from error


def _numbered(row: Mapping[str | None, Any], where: str) -> dict[str, float]:
    numbers = {}
    for column, text in row.items():
        try:
            if column is None or text is None:
                raise ValueError
            if text:
                numbers[column] = float(text)
        except ValueError:
            told = "has another number of cells" if None in (column, text) else f"{column} must be a number"
            raise UserError(f"{where} {told}.") from None
    if absent := [key for key in ("epoch", "step") if key not in numbers]:
        raise UserError(f"{where} has no {absent[0]}.")
    return numbers


def _curve(run: Drawn, panel: Panel) -> list[tuple[float, float]]:
    return [(row[panel.x], row[panel.y]) for row in read_curves(run.folder) if {panel.x, panel.y} <= set(row)]


def _draw_finals(axes: Axes, runs: Sequence[Drawn], panel: Panel) -> None:
    groups: dict[str, list[Drawn]] = {}
    for run in runs:
        groups.setdefault(run.values.get(panel.x, "?"), []).append(run)
    names = list(groups)
    numbers = _numbers(names)
    places = range(len(names)) if numbers is None else numbers
    found = [[run.finals[panel.y] for run in group if panel.y in run.finals] for group in groups.values()]
    shown = [(place, values) for place, values in zip(places, found, strict=True) if values]
    means = [sum(values) / len(values) for _, values in shown]
    below = [mean - min(values) for mean, (_, values) in zip(means, shown, strict=True)]
    above = [max(values) - mean for mean, (_, values) in zip(means, shown, strict=True)]
    axes.errorbar([place for place, _ in shown], means, yerr=(below, above), marker="o", capsize=3)
    if "/" in panel.y and any(run.best for run in runs):
        axes.set_ylabel(f"{panel.y} of the best checkpoint")
    if numbers is None:
        axes.set_xticks(list(places), names)
    elif min(numbers) > 0 and max(numbers) > 30 * min(numbers):
        axes.set_xscale("log")
    for place, group in zip(places, groups.values(), strict=True):
        _mark_failed(axes, place, group)


def _mark_failed(axes: Axes, place: float, group: Sequence[Drawn]) -> None:
    """A cross at the top for the runs of one value that have no result; it counts for the limits of x."""
    ends = [run.status for run in group if run.status != "completed"]
    if not ends:
        return
    axes.plot([place], [0.96], "x", color=_FAILED, transform=axes.get_xaxis_transform())
    axes.annotate(
        ends[0] if len(ends) == len(group) else f"{len(ends)} of {len(group)} {ends[0]}",
        (place, 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),  # beside the bar of those that have one
        textcoords="offset points",
        rotation=90,
        va="top",
        color=_FAILED,
        fontsize="small",
    )


def _draw_map(axes: Axes, runs: Sequence[Drawn], panel: Panel) -> None:
    """The mean of each pair of values; a pair without a result is marked."""
    assert panel.color is not None
    limits = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in panel.where.items())
    axes.set_title(f"{panel.color}{f' ({limits})' if limits else ''}", fontsize="medium")
    if not runs:
        axes.text(0.5, 0.5, "no runs", ha="center", transform=axes.transAxes)
        return
    columns, rows = (
        list(dict.fromkeys(run.values.get(key, "?") for run in runs)) for key in (panel.x, panel.y)
    )
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        of_pair = found.setdefault((run.values.get(panel.y, "?"), run.values.get(panel.x, "?")), [])
        if panel.color in run.finals:
            of_pair.append(run.finals[panel.color])
    means = {pair: sum(values) / len(values) for pair, values in found.items() if values}
    table = [[means.get((row, column), nan) for column in columns] for row in rows]
    shown = axes.imshow(table, aspect="auto", cmap="viridis")
    if panel.color == "diagnosis" or panel.color.endswith(("accuracy", "f1", "auroc")):
        shown.set_clim(0.0, 1.0)
    low, high = shown.get_clim()
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            text = "failed" if isnan(value) else f"{value:.2f}"
            ink = "white" if value < (low + high) / 2 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize="small", color=ink)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize="small")
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    axes.figure.colorbar(shown, ax=axes)


def _numbers(names: Sequence[str]) -> list[float] | None:
    try:
        return [float(name) for name in names]
    except ValueError:
        return None
