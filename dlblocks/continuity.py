"""What a run needs beside weights and optimizer to go on as if it had never stopped."""

from __future__ import annotations

import csv
import random
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch import distributed

from dlblocks.checkpoints import FOLDER, INTERRUPTED
from dlblocks.errors import Interrupted
from dlblocks.results import Result, write_table
from dlblocks.shares import of_all


class Continuity(Callback):
    """Keeps the random states of all processes, and what was found before training, in each checkpoint.

    Args:
        result: of the run.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "random": of_all(random_state()),
            "chosen": dict(self.result.chosen),
            "diagnosis": self.result.diagnosis,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
        # What was logged up to here must not be lost with the process.
        for logger in trainer.loggers:
            logger.save()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        # With more processes than before, the new ones keep their own seeds.
        states = self._loaded["random"] if self._loaded is not None else []
        if trainer.global_rank < len(states):
            set_random_state(states[trainer.global_rank])
        self._loaded = None


def random_state() -> dict[str, Any]:
    """The states of torch's, Python's and NumPy's global generators, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave.

    Raises:
        ValueError: it is no such state.
    """
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    if not 0 <= rest[0] <= len(keys):  # NumPy would read there
        raise ValueError(f"NumPy's generator has no position {rest[0]}")
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


class StopAtSignal(Callback):
    """SIGTERM and Ctrl-C end the run after the present update, with a checkpoint; a second one ends it at once.

    Args:
        folder: the run folder.

    Raises:
        Interrupted: in the training loop, after the checkpoint is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FOLDER / INTERRUPTED
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        # Lightning has set its own by now, which it takes back itself.
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:
            self._before = {}  # not in the main thread, which alone gets signals

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        # No checkpoint has the gradients of batches that are accumulated: wait for the update.
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # After the last batch come the validation and the epoch's own checkpoint: wait for them.
        if not trainer.is_last_batch and self._agreed(trainer):
            trainer.save_checkpoint(self.path)
            self._stop()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        # Before the first step of the next epoch, so that the epoch's checkpoint is the newest. Without a
        # checkpoint callback there is none, and the next step writes one.
        if trainer.checkpoint_callback is not None and self._agreed(trainer):
            self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self._restore()

    def on_exception(self, *_: Any) -> None:
        self._restore()

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Whether any of the processes was told to stop: a signal may reach only one, and all must stop together."""
        if trainer.world_size == 1:
            return self.received is not None
        number = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        told = int(number)
        # One that came meanwhile is not yet known to the others, and must not be lost.
        self.received = told or self.received
        return told > 0

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _stop(self) -> None:
        assert self.received is not None
        raise Interrupted(self.received)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class _Continued(ExperimentWriter):
    """A writer that leaves the table which is there."""

    def _check_log_dir_exists(self) -> None:
        pass


def continue_tables(loggers: Sequence[Logger], step: int, epochs: Sequence[Mapping[str, float]]) -> None:
    """Let CSV loggers add to their `metrics.csv`, without the rows that will be written again.

    Args:
        loggers: of the run.
        step: updates made when the checkpoint was written.
        epochs: the rows of the history. The log gets the row of an epoch's training after the checkpoint of that epoch,
            so a kill may have lost it.
    """
    for logger in loggers:
        path = Path(logger.log_dir or "") / "metrics.csv"
        if not isinstance(logger, CSVLogger) or not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) < step]
        kept += _lost(kept, step, epochs[-1]) if epochs else []
        logger._experiment = _Continued(logger.log_dir)
        if kept:
            # The writer sorts its columns, and writes a new header only for new ones.
            columns = sorted({key for row in kept for key in row})
            write_table([{key: row.get(key, "") for key in columns} for row in kept], path)
            logger._experiment.metrics_keys = columns
        else:
            path.unlink()


def _lost(rows: Sequence[Mapping[str, str]], step: int, epoch: Mapping[str, float]) -> list[dict[str, str]]:
    number = str(int(epoch["epoch"]))
    values = {key: str(value) for key, value in epoch.items() if key.startswith("train/")}
    if epoch["step"] != step or any(row["epoch"] == number and row.get("train/loss") for row in rows):
        return []
    return [{"epoch": number, "step": str(step - 1), **values}] if values else []
