"""The batches that trials train and are judged on, as a Trainer's loaders and hooks give them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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

    @property
    def of_training(self) -> list[Any]:
        """All training batches, those kept apart first."""
        return self.train if self.validation else [*self.judged, *self.train]


@contextmanager
def open_loaders(trainer: pl.Trainer) -> Iterator[None]:
    """Use the Trainer's loaders for a while; afterwards they serve what they would have served.

    Raises:
        UserError: a generator, which can't serve them again.
    """
    loops = _loops(trainer)
    before = [loop._combined_loader for loop in loops]
    sources = [loop._data_source for loop in loops]
    for source in sources:
        if not source.is_module():
            refuse_one_shot(source.instance, f"{source.name}s")
    with same_order(*(source.instance for source in sources), *(source.dataloader() for source in sources)):
        try:
            yield
        finally:
            for loop, loader in zip(loops, before, strict=True):
                loop._combined_loader = loader


def refuse_one_shot(loaders: Any, argument: str) -> None:
    """Refuse what gives its batches only once, and would give them to the search.

    Raises:
        UserError: names the argument.
    """
    for loader in tree_leaves(loaders):
        # Classes of others may be iterators that begin anew each time.
        if isinstance(loader, Iterator) and type(loader).__module__ in ("builtins", "itertools"):
            raise UserError(
                f"{argument}: a {type(loader).__name__} gives its batches only once, so that a search would leave none to"
                " train on. Give a DataLoader, whose data set may be an IterableDataset."
            )


def reload(trainer: pl.Trainer) -> None:
    """Set the Trainer's loaders up anew; inside `open_loaders`, which puts back those it had."""
    for loop in _loops(trainer):
        loop._combined_loader = None
        loop.setup_data()


def gather(trainer: pl.Trainer, steps: int) -> Batches:
    """The batches of the first steps, epoch after epoch, and those to be judged on; inside `open_loaders`.

    Where validation is enabled and there is a validation set, its first batches judge. Else a fifth of the first
    epoch's batches does (at least one), and no trial trains on them; a single batch serves for both.

    Raises:
        UserError: the training loader has no batch.
    """
    for loop in _loops(trainer):
        loop.setup_data()
    judged = _validation(trainer, JUDGED)
    train, per_epoch = _training(trainer, steps)
    if not train:
        raise UserError("the training set gives no batch; with drop_last, its batch size is too large.")
    if judged:
        return Batches(train, judged, validation=True)
    if len(train) == 1:
        return Batches(train, train, validation=False)
    apart = max(1, min(per_epoch, len(train)) // 5)
    return Batches(train[apart:per_epoch] or train[apart:], train[:apart], validation=False)


def of_update(update: int, accumulate: int, epoch: float) -> range:
    """Which batches, counted from the first of all, make up an update. As the Trainer, which makes the last update of an
    epoch of those that are left.

    Args:
        update: counted from 0.
        accumulate: batches for each update.
        epoch: batches in an epoch; infinite where that is not known.

    >>> [list(of_update(update, accumulate=2, epoch=3)) for update in range(3)]
    [[0, 1], [2], [3, 4]]
    """
    if math.isinf(epoch):
        return range(update * accumulate, (update + 1) * accumulate)
    before, place = divmod(update, math.ceil(epoch / accumulate))
    first = before * int(epoch) + place * accumulate
    return range(first, min(first + accumulate, (before + 1) * int(epoch)))


def first_batches(trainer: pl.Trainer, most: int) -> tuple[list[Any], list[Any]]:
    """The first training batches of an epoch, whatever the Trainer's limit, and one to validate on, if there is one;
    inside `open_loaders`."""
    train: list[Any] = []
    for batch in _served(trainer.train_dataloader):
        train.append(_ready(trainer, batch))
        if len(train) >= most or sum(map(_bytes, train)) >= LIMIT:
            break
    return train, _validation(trainer, 1)


def _loops(trainer: pl.Trainer) -> list[Any]:
    training = trainer.fit_loop
    return [training, training.epoch_loop.val_loop] if trainer.enable_validation else [training]


def _training(trainer: pl.Trainer, steps: int) -> tuple[list[Any], int]:
    batches: list[Any] = []
    size, per_epoch = 0, 0
    while len(batches) < steps and size < LIMIT:
        before = len(batches)
        for batch in _served(trainer.train_dataloader):
            batches.append(_ready(trainer, batch))
            size += _bytes(batches[-1])
            full = len(batches) >= steps or size >= LIMIT
            if full or len(batches) - before >= trainer.num_training_batches:
                break
        per_epoch = per_epoch or len(batches)
        if len(batches) == before:
            break
    return batches, per_epoch


def _validation(trainer: pl.Trainer, most: int) -> list[Any]:
    if not trainer.enable_validation or not trainer.val_dataloaders:
        return []
    limits = trainer.fit_loop.epoch_loop.val_loop.max_batches
    loaders = trainer.val_dataloaders
    first = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    return [
        _ready(trainer, batch)
        for batch, _ in zip(_served(first), range(int(min(most, *limits))), strict=False)
    ]


def _served(loaders: Any) -> Iterator[Any]:
    """The batches of one epoch; of several loaders, as the Trainer combines them."""
    if isinstance(loaders, (list, tuple, dict)):
        yield from (batch for batch, _, _ in CombinedLoader(loaders, "max_size_cycle"))
    else:
        yield from loaders


def _ready(trainer: pl.Trainer, batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
