"""Going on from a checkpoint: what must fit before, what this run takes over, and what is said where that fails."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from dlblocks.checkpoints import Checkpoint, fitting
from dlblocks.continuity import continue_tables
from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.results import Result
from dlblocks.trainer import is_main_process

# What Lightning writes beside the weights and reads again.
_PARTS = {
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "loops": Mapping,
    "callbacks": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "hyper_parameters": Mapping,
}
# What was found for `auto`, of `Continuity`.
_CHOSEN = {
    "data.batch_size": int,
    "trainer.accumulate_grad_batches": int,
    "optimizer.lr": float,
}


def check_start(start: Checkpoint, module: LitModule) -> None:
    """Refuse a checkpoint that this module can't go on from.

    Raises:
        UserError: it is of another net, optimizer or scheduler, or a part of it is not what it must be.
    """
    for part, kind in _PARTS.items():
        if part in start.content:
            value = start.content[part]
            _need(_is(value, kind) and (kind is not int or value >= 0), start, part, value)
    fitting(start.content, module, str(start))
    theirs = start.content.get("hyper_parameters", {})
    for block in ("optimizer", "scheduler"):
        given = theirs.get(block, {})
        _need(isinstance(given, Mapping), start, f"hyper_parameters.{block}", given)
        there, here = given.get("name"), module.hparams.get(block, {}).get("name")
        if there != here:
            raise UserError(f"{start}: was trained with {block}={there}, which can't go on as {here}.")


def rate_of(start: Checkpoint) -> float | None:
    """The learning rate that a checkpoint was trained with; None for an optimizer without one.

    Raises:
        UserError: it is none.
    """
    rate = start.content.get("hyper_parameters", {}).get("optimizer", {}).get("lr")
    _need(rate is None or (_is(rate, float) and rate > 0), start, "hyper_parameters.optimizer.lr", rate)
    return None if rate is None else float(rate)


def take_up(start: Checkpoint, trainer: L.Trainer, data: TableDataModule, result: Result) -> None:
    """Take over what the run had found for `auto`, and the rows of its log that are older than the checkpoint.

    Raises:
        UserError: they are not what they must be.
    """
    found = _of_callback(start, "Continuity")
    chosen, diagnosis = found.get("chosen", {}), found.get("diagnosis", "")
    _need(isinstance(chosen, Mapping), start, "callbacks.Continuity.chosen", chosen)
    for key, value in chosen.items():
        _need(
            key in _CHOSEN and _is(value, _CHOSEN[key]) and value > 0,
            start,
            f"callbacks.Continuity.chosen.{key}",
            value,
        )
    _need(isinstance(diagnosis, str), start, "callbacks.Continuity.diagnosis", diagnosis)
    rows = _of_callback(start, "History").get("rows", [])
    _need(isinstance(rows, list), start, "callbacks.History.rows", rows)
    for row in rows:
        whole = isinstance(row, Mapping) and {"epoch", "step"} <= row.keys()
        numbers = whole and all(isinstance(name, str) and _is(value, float) for name, value in row.items())
        _need(numbers, start, "a row of callbacks.History.rows", row)

    result.chosen.update(chosen)
    result.diagnosis = diagnosis
    data.batch_size = chosen.get("data.batch_size", data.batch_size)
    trainer.accumulate_grad_batches = chosen.get(
        "trainer.accumulate_grad_batches", trainer.accumulate_grad_batches
    )
    if is_main_process():
        continue_tables(trainer.loggers, start.content["global_step"], rows)


class Restoring(Callback):
    """Knows whether what a checkpoint holds may still have to prove itself: until the first epoch from there is over.

    Optimizers, schedulers and callbacks take over values of any kind, and use them only later. Those that could do harm
    before they fail are checked when training starts.
    """

    def __init__(self) -> None:
        self.under_way = False
        self._start: Checkpoint | None = None
        self._epochs = 0

    def setup(self, *_: Any, **__: Any) -> None:
        self.under_way = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if self._start is not None:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint):
                    _check_removal(callback, self._start)
            for optimizer in trainer.optimizers:
                _check_fused(optimizer, self._start)

    def on_train_epoch_start(self, *_: Any) -> None:
        self._epochs += 1
        self.under_way = self._epochs < 2

    @contextmanager
    def of(self, start: Checkpoint) -> Iterator[None]:
        """Train in it.

        Raises:
            UserError: what failed while `under_way`.
        """
        self._start = start
        try:
            yield
        except (UserError, MemoryError, torch.OutOfMemoryError, OSError):
            raise
        except Exception as error:
            if not self.under_way:
                raise
            said = next(iter(str(error).splitlines()), "")
            raise UserError(
                f"{start}: the run can't go on from what it holds ({type(error).__name__}: {said})."
                f"{_instead(start)}"
            ) from error


def _check_removal(callback: ModelCheckpoint, start: Checkpoint) -> None:
    """Refuse paths that Lightning would remove, with all that is in them, though they are no checkpoints of the run.

    It removes those that begin with the folder of the run's checkpoints, wherever `..` and links lead, and those of
    other protocols.
    """
    own = Path(callback.dirpath or "").absolute()
    paths = (
        callback.best_model_path,
        callback.kth_best_model_path,
        callback.last_model_path,
        *callback.best_k_models,
    )
    for path in paths:
        whole = Path(path).absolute()
        elsewhere = whole.name == ".." or not whole.parent.resolve().is_relative_to(own.resolve())
        _need(
            not re.search("::|://", path) and not (own in whole.parents and elsewhere),
            start,
            "a path of callbacks.ModelCheckpoint",
            path,
        )


def _check_fused(optimizer: Optimizer, start: Checkpoint) -> None:
    """Refuse states that torch's fused updates would write beyond, since these don't look at shapes."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    number = key == "step" and value.numel() == 1
                    shape = tuple(value.shape)
                    _need(number or _laid_out_as(value, parameter), start, f"optimizer_states: {key}", shape)


def _laid_out_as(value: Tensor, parameter: Tensor) -> bool:
    return (value.layout, value.dtype, value.shape) == (
        parameter.layout,
        parameter.dtype,
        parameter.shape,
    ) and (value.stride() == parameter.stride() or (value.is_contiguous() and parameter.is_contiguous()))


def _of_callback(start: Checkpoint, callback: str) -> Mapping[str, Any]:
    state = start.content.get("callbacks", {}).get(callback, {})
    _need(isinstance(state, Mapping), start, f"callbacks.{callback}", state)
    kept: Mapping[str, Any] = state
    return kept


def _is(value: Any, kind: Any) -> bool:
    """As `isinstance`, but a bool is no number, and an int is a float."""
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _need(held: bool, start: Checkpoint, part: str, value: Any) -> None:
    if not held:
        raise UserError(f"{start}: damaged; {part} can't be {reprlib.repr(value)}.{_instead(start)}")


def _instead(start: Checkpoint) -> str:
    """What to do about one that resuming chose itself."""
    return "" if start.key else " Without that file the run goes on from the checkpoint before it."
