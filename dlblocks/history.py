"""The metrics of every epoch, for the curves."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class History(Callback):
    """Keeps one row an epoch: `{"epoch": 0, "step": 36, "seconds": 0.1, "train/loss": ..., "val/accuracy": ...}`.

    `step` counts optimizer steps and `seconds` the time since `fit` began, both at the end of the epoch.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._start = 0.0
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._trainer = trainer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._start = time.perf_counter() - (self.rows[-1].get("seconds", 0.0) if self.rows else 0.0)

    # A module's own end-of-epoch hook runs after a callback's, so a row is complete one hook later.
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._gather(trainer, trainer.current_epoch - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._gather(trainer, len(self.rows) + self._first)

    def state_dict(self) -> dict[str, Any]:
        # A checkpoint after the last batch of an epoch has the row of that epoch too.
        trainer = self._trainer
        row = (
            self._row(trainer, trainer.current_epoch)
            if trainer is not None and trainer.is_last_batch
            else None
        )
        return {"rows": [*self._before(row), row] if row else list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    @property
    def _first(self) -> int:
        return int(self.rows[0]["epoch"]) if self.rows else 0

    def _gather(self, trainer: L.Trainer, epoch: int) -> None:
        if row := self._row(trainer, epoch):
            self.rows = [*self._before(row), row]

    def _before(self, row: dict[str, float] | None) -> list[dict[str, float]]:
        return [old for old in self.rows if row and old["epoch"] < row["epoch"]]

    def _row(self, trainer: L.Trainer, epoch: int) -> dict[str, float] | None:
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and not name.endswith("_step")
        }
        if epoch < 0 or not values:
            return None
        seconds = time.perf_counter() - self._start
        return {"epoch": float(epoch), "step": float(trainer.global_step), "seconds": seconds, **values}
