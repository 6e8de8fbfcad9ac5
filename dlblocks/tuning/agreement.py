"""Numbers that all processes have to agree on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import distributed


def least(trainer: pl.Trainer, value: float) -> float:
    """The least of all processes' values."""
    return _reduced(trainer, value, distributed.ReduceOp.MIN)


def total(trainer: pl.Trainer, value: float) -> float:
    """The sum of all processes' values."""
    return _reduced(trainer, value, distributed.ReduceOp.SUM)


def mean(trainer: pl.Trainer, value: float) -> float:
    """The mean of all processes' values."""
    return total(trainer, value) / trainer.world_size


def _reduced(trainer: pl.Trainer, value: float, operation: Any) -> float:
    if trainer.world_size == 1:
        return value
    device = trainer.strategy.root_device
    shared = torch.tensor(value, dtype=torch.float32 if device.type == "mps" else torch.float64).to(device)
    distributed.all_reduce(shared, operation)
    return float(shared)
