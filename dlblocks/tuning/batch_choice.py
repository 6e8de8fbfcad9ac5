"""What a batch-size finder found, and the picture and table that show why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlblocks.results import write_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Updates that an epoch should have at least: a run of 20 epochs then has 200.
UPDATES = 10


@dataclass(frozen=True)
class Measured:
    """One size that was tried.

    Args:
        size: instances in a batch: of all processes together where they share it, as of a `TableDataModule`, else of
            each process.
        samples_per_second: in training, of all processes; 0 if it did not fit.
        memory: the most bytes above those in use before, of the process with most; 0 where not known.
        fixed: bytes of weights, gradients and the optimizer's state, which do not depend on the size.
        fits: a training step and a validation step ran within the memory.
        updates_per_epoch: of the optimizer, with accumulation; None where the training set has no length.
        class_deviation: see `tuning.advice`; None without classes.
    """

    size: int
    samples_per_second: float
    memory: int
    fixed: int
    fits: bool
    updates_per_epoch: int | None
    class_deviation: float | None = None


@dataclass(frozen=True)
class BatchSizeChoice:
    """A batch size and where it comes from.

    Args:
        size: instances in a batch, as of `Measured`.
        accumulate: batches for each update, of each process.
        processes: that each take batches of this size; 1 also where they share them.
        explanation: one line that says why this one.
        measured: every size tried, ascending.
        knee: the smallest size with 80 % of the best samples per second.
        memory_limit: the most bytes a size may take; None where that is not known.
        noise_scale: the gradient noise scale of the untrained net, in instances; None if it can't be told.
    """

    size: int
    accumulate: int
    processes: int
    explanation: str
    measured: tuple[Measured, ...]
    knee: int
    memory_limit: int | None = None
    noise_scale: float | None = None

    @property
    def effective(self) -> int:
        """Instances for each update."""
        return self.size * self.accumulate * self.processes

    def rows(self) -> list[dict[str, Any]]:
        """The table: a row for each size."""
        return [asdict(measured) for measured in self.measured]

    def save(self, folder: str | Path) -> None:
        """Write `batch_size_finder.csv` and `batch_size_finder.png` into a folder."""
        write_table(self.rows(), Path(folder) / "batch_size_finder.csv")
        self.draw(Path(folder) / "batch_size_finder.png")

    def draw(self, path: str | Path) -> None:
        """Draw throughput and memory against the size, and what decides."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        speed, taken = figure.subplots(1, 2)
        ran = [one for one in self.measured if one.samples_per_second]
        sizes = [one.size for one in self.measured]
        speed.plot([one.size for one in ran], [one.samples_per_second for one in ran], "o-")
        speed.axvline(self.knee, color="tab:orange", linestyle=":", label=f"knee: {self.knee}")
        few = [one.size for one in ran if one.updates_per_epoch and one.updates_per_epoch < UPDATES]
        if few:
            label = f"fewer than {UPDATES} updates an epoch"
            speed.axvspan(min(few) / 2**0.5, sizes[-1] * 2**0.5, color="gray", alpha=0.15, label=label)
        taken.plot([one.size for one in ran], [one.memory / 2**20 for one in ran], "o-")
        most = max((one.memory for one in ran), default=0)
        if self.memory_limit is not None and self.memory_limit < 3 * most:
            taken.axhline(self.memory_limit / 2**20, color="tab:red", label="limit")
        for one in self.measured:
            if not one.fits:
                taken.plot([one.size], [most / 2**20], "x", color="tab:red", label=f"{one.size} does not fit")
        for axes, name in ((speed, "samples per second"), (taken, "memory in MiB")):
            axes.axvline(self.size, color="black", linestyle="--", linewidth=1, label=f"chosen: {self.size}")
            axes.set(xscale="log", xlabel="batch size", ylabel=name, ylim=(0, None))
            axes.set_xlim(sizes[0] / 2**0.5, sizes[-1] * 2**0.5)
            axes.set_xticks(sizes, [str(size) for size in sizes], rotation=60)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        # Under the axes, where it hides no point.
        figure.legend(*_named(speed, taken), loc="outside lower center", ncols=5)
        figure.savefig(path, dpi=120)


def _named(*panels: Axes) -> tuple[list[Any], list[str]]:
    """What has a label, once for all panels."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return [*found.values()], [*found]
