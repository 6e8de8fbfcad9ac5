"""The metrics of every epoch, for the curves."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class History(Callback):
    """Keeps one row of metrics an epoch: `{"epoch": 0, "train/loss": ..., "val/accuracy": ...}`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

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
            self.rows.append({"epoch": float(epoch), **values})
