"""What a batch-size finder found, and the picture and table that show why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlblocks.results import write_table


@dataclass(frozen=True)
class Measured:
    """One size that was tried.

    Args:
        size: instances in a batch, of all processes together.
        samples_per_second: in training, of all processes; 0 if it did not fit.
        memory: the most bytes above those in use before, of the process with most; 0 where not known.
        fits: a training step and a validation step ran within the memory.
        updates_per_epoch: batches of this size in an epoch; None where the training set has no length.
        class_deviation: see `tuning.advice`; None without classes.
    """

    size: int
    samples_per_second: float
    memory: int
    fits: bool
    updates_per_epoch: int | None
    class_deviation: float | None = None


@dataclass(frozen=True)
class BatchSizeChoice:
    """A batch size and where it comes from.

    Args:
        size: instances in a batch, of all processes together.
        accumulate: batches for each update.
        explanation: one line that says why this one.
        measured: every size tried, ascending.
        noise_scale: the gradient noise scale of the untrained net, in instances; None if it can't be told.
    """

    size: int
    accumulate: int
    explanation: str
    measured: tuple[Measured, ...]
    noise_scale: float | None = None

    @property
    def effective(self) -> int:
        """Instances for each update."""
        return self.size * self.accumulate

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row for each size."""
        return [asdict(measured) for measured in self.measured]

    def save(self, folder: str | Path) -> None:
        """Write `batch_size_finder.csv` and `batch_size_finder.png` into a folder."""
        write_table(self.rows(), Path(folder) / "batch_size_finder.csv")
        self.draw(Path(folder) / "batch_size_finder.png")

    def draw(self, path: str | Path) -> None:
        """Draw throughput and memory against the size, and the choice."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        ran = [measured for measured in self.measured if measured.samples_per_second]
        sizes = [measured.size for measured in ran]
        panels = (
            ("samples per second", [measured.samples_per_second for measured in ran]),
            ("memory in MB", [measured.memory / 2**20 for measured in ran]),
        )
        for axes, (name, values) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.plot(sizes, values, "o-")
            axes.axvline(self.size, color="black", linestyle="--", linewidth=1, label=f"chosen: {self.size}")
            axes.set(xscale="log", xlabel="batch size", ylabel=name, ylim=(0, None))
            axes.set_xticks(sizes, [str(size) for size in sizes], rotation=60)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, dpi=120)
