"""The batches that trials train and are judged on, as a Trainer's loaders and hooks give them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_leaves

from dlblocks.errors import UserError
from dlblocks.tuning.contents import tensors
from dlblocks.tuning.restore import same_order
from dlblocks.tuning.sizes import guessed_count
from dlblocks.tuning.stages import validating

# Batches are kept in memory, up to so many bytes; after them the first ones come again.
LIMIT = 2**30
# Validation batches, and more of small ones up to so many instances: the loss on some hundreds tells two rates apart.
JUDGED, JUDGED_INSTANCES = 8, 256


@dataclass(frozen=True)
class Batches:
    """Batches as the Trainer gives them to a step: converted, and on its device.

    Args:
        train: what trials train on, in order; afterwards from the beginning.
        judged: what they are judged on: validation batches, or training batches kept apart.
        validation: which of both.
        per_epoch: training batches of the first epoch.
    """

    train: list[Any]
    judged: list[Any]
    validation: bool
    per_epoch: int

    @property
    def of_training(self) -> list[Any]:
        """All training batches, those kept apart first."""
        return self.train if self.validation else [*self.judged, *self.train]

    def kept_apart(self) -> Batches:
        """Judged on a fifth of the first epoch's training batches (at least one) instead, on which no trial then trains;
        a single batch serves for both."""
        train = self.train
        if len(train) == 1:
            return replace(self, judged=train, validation=False)
        apart = max(1, self.per_epoch // 5)
        rest = train[apart : self.per_epoch] or train[apart:]
        return replace(self, train=rest, judged=train[:apart], validation=False)


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


def gather(trainer: pl.Trainer, count: int | Callable[[Any], int]) -> Batches:
    """The first training batches, epoch after epoch, and those to be judged on; inside `open_loaders`.

    Where validation is enabled and there is a validation set, its first batches judge, else training batches that are
    kept apart.

    Args:
        trainer: in the middle of `fit`.
        count: how many are wanted, or what says so, told the first batch.

    Raises:
        UserError: the training loader has no batch.
    """
    for loop in _loops(trainer):
        loop.setup_data()
    judged = _validation(trainer, JUDGED, JUDGED_INSTANCES)
    train, per_epoch = _training(trainer, count)
    if not train:
        raise no_batch()
    batches = Batches(train, judged, True, per_epoch)
    return batches if judged else batches.kept_apart()


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


class First(NamedTuple):
    """The first training batches of an epoch, one batch to validate on (or none), and whether the epoch ended with
    them."""

    train: list[Any]
    judged: list[Any]
    whole: bool


def first_batches(trainer: pl.Trainer, most: int) -> First:
    """The first batches, whatever the Trainer's limit; inside `open_loaders`."""
    train: list[Any] = []
    whole = True
    for batch in _served(trainer.fit_loop):
        train.append(_ready(trainer, batch))
        if len(train) >= most or sum(map(_bytes, train)) >= LIMIT:
            whole = False
            break
    return First(train, _validation(trainer, 1), whole)


def no_batch() -> UserError:
    """There is nothing to try."""
    return UserError(
        "the training loader gives no batch: its data set is empty, or with drop_last smaller than a batch."
    )


def _loops(trainer: pl.Trainer) -> list[Any]:
    training = trainer.fit_loop
    return [training, training.epoch_loop.val_loop] if trainer.enable_validation else [training]


def _training(trainer: pl.Trainer, count: int | Callable[[Any], int]) -> tuple[list[Any], int]:
    batches: list[Any] = []
    size, per_epoch, wanted = 0, 0, 1
    while len(batches) < wanted and size < LIMIT:
        before = len(batches)
        for batch in _served(trainer.fit_loop):
            batches.append(_ready(trainer, batch))
            if len(batches) == 1:
                wanted = count if isinstance(count, int) else count(batches[0])
            size += _bytes(batches[-1])
            full = len(batches) >= wanted or size >= LIMIT
            if full or len(batches) - before >= trainer.num_training_batches:
                break
        per_epoch = per_epoch or len(batches)
        if len(batches) == before:
            break
    return batches, per_epoch


def _validation(trainer: pl.Trainer, count: int, instances: int = 0) -> list[Any]:
    """The first validation batches, until there are so many batches and instances, made as when the Trainer validates; of
    several loaders one after the other, those of the first."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if not trainer.enable_validation or loop._combined_loader is None:
        return []
    if loop._is_sequential:
        limit, batches = loop.max_batches[0], iter(loop._combined_loader.flattened[0])
    else:
        shortest = loop._combined_loader._mode == "min_size"
        limit, batches = (min if shortest else max)(loop.max_batches), _served(loop)
    with validating(trainer, trainer.lightning_module):
        trainer.lightning_module.eval()
        made, seen = list[Any](), 0
        for batch in islice(batches, int(min(max(count, instances), limit))):
            if len(made) >= count and seen >= instances:
                break
            made.append(_ready(trainer, batch))
            seen += guessed_count(made[-1]) or instances
        return made


def _served(loop: Any) -> Iterator[Any]:
    """The batches of one epoch; of several loaders, as the Trainer combines them."""
    combined = loop._combined_loader
    if isinstance(combined.iterables, (list, tuple, dict)):
        yield from (batch for batch, _, _ in CombinedLoader(combined.iterables, combined._mode))
    else:
        yield from combined.iterables


def _ready(trainer: pl.Trainer, batch: Any) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _bytes(batch: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors(batch))
