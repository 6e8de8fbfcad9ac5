"""What a learning-rate finder found, and the picture and table that show why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlblocks.results import write_table
from dlblocks.tuning.race import Lap
from dlblocks.tuning.range_test import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LearningRateChoice:
    """A learning rate and where it comes from.

    Args:
        lr: of the first parameter group.
        method: `race`, `valley`, `steepest` or `minimum`.
        explanation: one line that says why this one.
        judged_by: the loss that decides, such as `validation loss`.
        laps: of a race.
        curve: of a range test.
        suggestions: of a range test, by method.
    """

    lr: float
    method: str
    explanation: str
    judged_by: str
    laps: tuple[Lap, ...] = ()
    curve: Curve | None = None
    suggestions: dict[str, float] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The table: of a race a row for each lap, of a range test one for each step."""
        if self.curve is None:
            return [
                {"lr": lap.rate, "steps": lap.steps, "loss": lap.loss, "judged_by": self._judged_by(lap)}
                for lap in self.laps
            ]
        columns = zip(self.curve.rates, self.curve.losses, self.curve.smooth, strict=True)
        return [{"lr": rate, "loss": loss, "smooth": smooth} for rate, loss, smooth in columns]

    def _judged_by(self, lap: Lap) -> str:
        return self.judged_by if lap.judged else "training loss"

    def save(self, folder: str | Path) -> None:
        """Write `lr_finder.csv` and `lr_finder.png` into a folder."""
        write_table(self.rows(), Path(folder) / "lr_finder.csv")
        self.draw(Path(folder) / "lr_finder.png")

    def draw(self, path: str | Path) -> None:
        """Draw the losses against the rates, and the choice."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        if self.curve is None:
            _draw_race(axes, self.laps, self.judged_by)
        else:
            _draw_curve(axes, self.curve, self.suggestions or {})
        axes.axvline(self.lr, color="black", linestyle="--", linewidth=1, label=f"chosen: {self.lr:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.grid(alpha=0.3)
        # Beside the axes: points may be in any of their corners.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
        figure.savefig(path, dpi=120)


def _draw_race(axes: Axes, laps: tuple[Lap, ...], judged_by: str) -> None:
    ends = sorted({(lap.judged, lap.steps) for lap in laps if lap.steps})
    for turn, (judged, end) in enumerate(ends):
        here = sorted(
            (lap.rate, lap.loss)
            for lap in laps
            if (lap.judged, lap.steps) == (judged, end) and not math.isnan(lap.loss)
        )
        shade = 0.25 + 0.75 * (turn + 1) / len(ends)
        label = f"{judged_by if judged else 'training loss'}, {end} steps"
        axes.plot(*zip(*here, strict=True) if here else ([], []), "o-", alpha=shade, label=label)
    # Where a rate is too high the loss has no bounds.
    finite = [lap.loss for lap in laps if not math.isnan(lap.loss)]
    low, start = min(finite), laps[0].loss
    top = max(finite) if math.isnan(start) else start
    axes.axhline(top, color="gray", linestyle=":", linewidth=1, label="before training")
    if low > 0:
        axes.set(yscale="log", ylim=(low / 1.3, max(top * 3, low * 2)))
    else:
        axes.set_ylim(low - 0.1 * (top - low), top + (top - low))


def _draw_curve(axes: Axes, curve: Curve, suggestions: dict[str, float]) -> None:
    axes.plot(curve.rates, curve.losses, alpha=0.3, label="loss before each step")
    axes.plot(curve.rates, curve.smooth, label="smoothed")
    for name, rate in suggestions.items():
        nearest = min(range(len(curve.rates)), key=lambda i: abs(math.log(curve.rates[i] / rate)))
        axes.plot([rate], [curve.smooth[nearest]], "o", label=f"{name}: {rate:.2g}")
    low, high = min(curve.smooth), max(curve.losses[0], curve.smooth[0])
    axes.set_ylim(low - 0.1 * abs(high - low), high + 0.5 * abs(high - low))
