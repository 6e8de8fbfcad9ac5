"""What came of each run of a sweep: `sweep.csv`, rewritten after every run, and the table at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlblocks.errors import UserError
from dlblocks.results import Result, write_table
from dlblocks.sweeps.picture import Drawn, Panel, draw
from dlblocks.terminal import show, tell

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class _Run:
    number: int
    overrides: dict[str, str]
    folder: str
    status: str = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    finals: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    best: bool = False
    error: str = ""
    said: str = ""


class SweepRecord:
    """Gathers the runs of a sweep, best first.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.main_metric = ("", "max")
        self._runs: list[_Run] = []

    def start(self, number: int, overrides: list[Any], folder: str) -> None:
        """A run begins."""
        pairs = dict(str(override).lstrip("+").split("=", 1) for override in overrides)
        self._runs.append(_Run(number, pairs, folder))
        self._save()

    def complete(self, result: Result) -> None:
        """The run that began last has ended well."""
        run = self._runs[-1]
        run.status, run.metrics, self.main_metric = result.status, result.metrics, result.main_metric
        run.finals = {"seconds": result.seconds.get("fit", 0.0), "steps": float(result.steps)}
        run.said, run.chosen, run.best = result.diagnosis, result.chosen, result.best_checkpoint is not None
        self._save()

    def fail(self, error: str, status: str = "failed") -> None:
        """The run that began last has ended without a result."""
        run = self._runs[-1]
        run.status, run.error = status, error
        # The run itself has failed, perhaps on a disk that is full; its result may not be there, or not whole.
        with contextlib.suppress(FileNotFoundError, UserError):
            saved = Result.load(run.folder)
            run.said, run.chosen = saved.diagnosis, saved.chosen
            if saved.main_metric[0]:
                self.main_metric = saved.main_metric
        self._save()

    def rows(self) -> list[dict[str, Any]]:
        """One row a run: number, what was varied, what was chosen for it, status, metrics, folder, error; best first."""
        metrics = sorted(
            {name for run in self._runs for name in run.metrics if name.startswith(("test/", "val/"))}
        )
        return [
            {
                "run": run.number,
                **{key: run.overrides.get(key, "") for key in self._varied()},
                **{f"chosen {key}": run.chosen.get(key, "") for key in self._chosen()},
                **({"diagnosis": run.said} if any(other.said for other in self._runs) else {}),
                "status": run.status,
                **{name: run.metrics.get(name, "") for name in metrics},
                "folder": run.folder,
                "error": run.error,
            }
            for run in self._ranked()
        ]

    def show(self) -> None:
        """Print the table of all runs."""
        show(self.table())
        for run in self._runs:
            if run.error:
                tell(f"run {run.number} {run.status}: {run.error}")
        tell(f"sweep folder: {self.folder}")

    def draw(self, panels: Sequence[Panel]) -> Path:
        """Draw the panels of the recipe into `sweep.png`."""
        path = self.folder / "sweep.png"
        runs = [
            Drawn(
                label=", ".join(
                    f"{key.rpartition('.')[2]}={run.overrides.get(key, '')}" for key in self._varied()
                ),
                values=run.overrides,
                folder=run.folder,
                finals={**run.metrics, **run.finals, **_predicted(run.said)},
                status=run.status,
                best=run.best,
            )
            for run in self._runs
        ]
        metric = self.main_metric[0].partition("/")[2]
        draw(runs, [panel.named(metric) if metric else panel for panel in panels], path)
        return path

    def table(self) -> Table:
        """All runs, best first, with the main metric and that of the test."""
        from rich.markup import escape
        from rich.table import Table

        main = self.main_metric[0]
        shown = [main, f"test/{main.partition('/')[2]}"] if main else []
        table = Table(title=f"{len(self._runs)} runs, best first", title_justify="left")
        chosen = [f"chosen {key}" for key in self._chosen()]
        for column in ("run", *self._varied(), *chosen, "status", *shown):
            table.add_column(column.replace("/", " "), overflow="fold")
        for row in self.rows():
            values = [row.get(name, "") for name in shown]
            table.add_row(
                str(row["run"]),
                *(escape(str(row[key])) for key in self._varied()),
                *(f"{row[key]:.4g}" if row[key] != "" else "" for key in chosen),
                row["status"],
                *(f"{value:.4f}" if isinstance(value, float) else "" for value in values),
            )
        return table

    def _varied(self) -> list[str]:
        keys = list(dict.fromkeys(key for run in self._runs for key in run.overrides))
        several = [key for key in keys if len({run.overrides.get(key) for run in self._runs}) > 1]
        return several or keys

    def _chosen(self) -> list[str]:
        """The keys for which something was found or rescaled in some run."""
        return list(dict.fromkeys(key for run in self._runs for key in run.chosen))

    def _ranked(self) -> list[_Run]:
        name, mode = self.main_metric
        sign = -1.0 if mode == "max" else 1.0
        return sorted(
            self._runs,
            key=lambda run: (name not in run.metrics, sign * run.metrics.get(name, 0.0), run.number),
        )

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(self.rows(), self.folder / "sweep.csv")


def _predicted(said: str) -> dict[str, float]:
    """What was said before training, as a number to draw."""
    return {"diagnosis": {"trains": 1.0, "slow": 0.5, "unclear": 0.5}.get(said, 0.0)} if said else {}
