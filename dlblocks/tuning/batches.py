"""The batches that trials train and are judged on, as a Trainer's loaders and hooks give them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_leaves

from dlblocks.errors import UserError
from dlblocks.tuning.restore import same_order

# Batches are kept in memory, up to so many bytes; after them the first ones come again.
LIMIT = 2**30
# Validation batches at most: the loss on some thousand instances tells two rates apart.
JUDGED = 8


@dataclass(frozen=True)
class Batches:
    """Batches as the Trainer gives them to a step: converted, and on its device.

    Args:
        train: what trials train on, in order; afterwards from the beginning.
        judged: what they are judged on: validation batches, or training batches kept apart.
        validation: which of both.
    """

    train: list[Any]
    judged: list[Any]
    validation: bool


def gather(trainer: pl.Trainer, steps: int) -> Batches:
    """The batches of the first steps, epoch after epoch, and those to be judged on.

    Where validation is enabled and there is a validation set, its first batches judge. Else a fifth of the first
    epoch's batches does (at least one), and no trial trains on them; a single batch serves for both.
    The loaders afterwards serve what they would have served.

    Raises:
        UserError: the training loader has no batch.
    """
    judged = _validation(trainer)
    train, per_epoch = _training(trainer, steps)
    if not train:
        raise UserError("the training set gives no batch; with drop_last, its batch size is too large.")
    if judged:
        return Batches(train, judged, validation=True)
    if len(train) == 1:
        return Batches(train, train, validation=False)
    apart = max(1, min(per_epoch, len(train)) // 5)
    return Batches(train[apart:per_epoch] or train[apart:], train[:apart], validation=False)


def _training(trainer: pl.Trainer, steps: int) -> tuple[list[Any], int]:
    loop = trainer.fit_loop
    batches: list[Any] = []
    size, per_epoch = 0, 0
    with _guarded(loop._data_source.dataloader()):
        try:
            loop.setup_data()
            limit = loop.max_batches
            while len(batches) < steps and size < LIMIT:
                before = len(batches)
                for batch in map(partial(_ready, trainer), _served(trainer.train_dataloader)):
                    batches.append(batch)
                    size += _bytes(batch)
                    if len(batches) >= steps or size >= LIMIT or len(batches) - before >= limit:
                        break
                per_epoch = per_epoch or len(batches)
                if len(batches) == before:
                    break
        finally:
            loop._combined_loader = None
    return batches, per_epoch


def _validation(trainer: pl.Trainer) -> list[Any]:
    loop = trainer.fit_loop.epoch_loop.val_loop
    if not trainer.limit_val_batches or not trainer.enable_validation or not loop._data_source.is_defined():
        return []
    with _guarded(loop._data_source.dataloader()):
        try:
            loop.setup_data()
            if not trainer.val_dataloaders:
                return []
            batches: list[Any] = []
            most = min(JUDGED, min(loop.max_batches, default=0))
            for batch in _served(trainer.val_dataloaders):
                if len(batches) >= most:
                    break
                batches.append(_ready(trainer, batch))
            return batches
        finally:
            loop._combined_loader = None


@contextmanager
def _guarded(loaders: Any) -> Iterator[None]:
    """Every loader in a structure of them serves afterwards what it would have served."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.iterables
    with ExitStack() as stack:
        for loader in tree_leaves(loaders):
            stack.enter_context(same_order(loader))
        yield


def _served(loaders: Any) -> Iterator[Any]:
    """The batches of one epoch; of several loaders, as the Trainer combines them."""
    if isinstance(loaders, (list, tuple, dict)):
        if isinstance(loaders, (list, tuple)) and len(loaders) == 1:
            yield from loaders[0]
            return
        combined = CombinedLoader(loaders, "max_size_cycle")
        for batch, _, _ in combined:
            yield batch
        return
    yield from loaders


def _ready(trainer: pl.Trainer, batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
