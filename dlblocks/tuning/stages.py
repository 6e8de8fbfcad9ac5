"""The stage of a Trainer, by which a module's steps and hooks know what they are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import _ModuleMode


@contextmanager
def validating(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """For a while the Trainer validates; each part of the module then goes back to the mode it had."""
    mode, stage = _ModuleMode(), trainer.state.stage
    mode.capture(module)
    trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage
        mode.restore(module)
