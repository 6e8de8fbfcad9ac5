"""Pluggable deep-learning blocks for PyTorch Lightning.

Blocks by name (`activation`, `initializer`, `loss`, `optimizer`, `scheduler`, `model`), the registry
(`names`, `describe`, `register`), and whole runs (`compose`, `find_batch_size`, `find_lr`, `train`, `load`).
Nothing here imports torch until a block is built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlblocks.data.module import TableDataModule
    from dlblocks.diagnosis.diagnose import diagnose
    from dlblocks.diagnosis.report import Diagnosis
    from dlblocks.diagnosis.watch import SignalWatch
    from dlblocks.errors import UserError
    from dlblocks.factory import activation, initializer, loss, model
    from dlblocks.hydra.compose import compose
    from dlblocks.initializers.apply import initialize
    from dlblocks.loading import load
    from dlblocks.module import LitModule
    from dlblocks.optimizers.build import optimizer
    from dlblocks.records import Block, Param
    from dlblocks.registry import describe, names, register
    from dlblocks.results import Result
    from dlblocks.schedulers.build import scheduler
    from dlblocks.surgery import replace_activations
    from dlblocks.training import train
    from dlblocks.tuning.batch_choice import BatchSizeChoice
    from dlblocks.tuning.batch_size import BatchSizeFinder, find_batch_size
    from dlblocks.tuning.choice import LearningRateChoice
    from dlblocks.tuning.learning_rate import LearningRateFinder, find_lr

# Public name -> the module that holds it.
_HOMES = {
    "BatchSizeChoice": "dlblocks.tuning.batch_choice",
    "BatchSizeFinder": "dlblocks.tuning.batch_size",
    "Block": "dlblocks.records",
    "Diagnosis": "dlblocks.diagnosis.report",
    "LearningRateChoice": "dlblocks.tuning.choice",
    "LearningRateFinder": "dlblocks.tuning.learning_rate",
    "LitModule": "dlblocks.module",
    "Param": "dlblocks.records",
    "Result": "dlblocks.results",
    "SignalWatch": "dlblocks.diagnosis.watch",
    "TableDataModule": "dlblocks.data.module",
    "UserError": "dlblocks.errors",
    "activation": "dlblocks.factory",
    "compose": "dlblocks.hydra.compose",
    "describe": "dlblocks.registry",
    "diagnose": "dlblocks.diagnosis.diagnose",
    "find_batch_size": "dlblocks.tuning.batch_size",
    "find_lr": "dlblocks.tuning.learning_rate",
    "initialize": "dlblocks.initializers.apply",
    "initializer": "dlblocks.factory",
    "load": "dlblocks.loading",
    "loss": "dlblocks.factory",
    "model": "dlblocks.factory",
    "names": "dlblocks.registry",
    "optimizer": "dlblocks.optimizers.build",
    "register": "dlblocks.registry",
    "replace_activations": "dlblocks.surgery",
    "scheduler": "dlblocks.schedulers.build",
    "train": "dlblocks.training",
}

__all__ = [
    "BatchSizeChoice",
    "BatchSizeFinder",
    "Block",
    "Diagnosis",
    "LearningRateChoice",
    "LearningRateFinder",
    "LitModule",
    "Param",
    "Result",
    "SignalWatch",
    "TableDataModule",
    "UserError",
    "activation",
    "compose",
    "describe",
    "diagnose",
    "find_batch_size",
    "find_lr",
    "initialize",
    "initializer",
    "load",
    "loss",
    "model",
    "names",
    "optimizer",
    "register",
    "replace_activations",
    "scheduler",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dlblocks' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
