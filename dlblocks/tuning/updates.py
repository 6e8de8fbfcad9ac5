"""How many updates a run has, and how many batches each of them takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler


def updates_left(trainer: pl.Trainer) -> float:
    """The updates that are still to come, of a Trainer that has finished those of a whole run; infinite where that is
    not known."""
    total = trainer.estimated_stepping_batches
    if total <= 0:
        return math.inf
    left = total - trainer.global_step
    return left if left > 0 else total


def set_accumulation(trainer: pl.Trainer, callbacks: Iterable[Callback]) -> None:
    """Let the Trainer accumulate as in the epoch that begins, where a callback changes that from epoch to epoch."""
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(trainer.current_epoch)
