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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._start = time.perf_counter() - (self.rows[-1].get("seconds", 0.0) if self.rows else 0.0)

    # A module's own end-of-epoch hook runs after a callback's, so a row is complete one hook later.
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._gather(trainer, trainer.current_epoch - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._gather(trainer, len(self.rows) + self._first)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    @property
    def _first(self) -> int:
        return int(self.rows[0]["epoch"]) if self.rows else 0

    def _gather(self, trainer: L.Trainer, epoch: int) -> None:
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and not name.endswith("_step")
        }
        if epoch >= 0 and values:
            seconds = time.perf_counter() - self._start
            place = {"epoch": float(epoch), "step": float(trainer.global_step), "seconds": seconds}
            self.rows.append({**place, **values})
