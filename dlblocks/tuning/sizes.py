"""Giving the training loader of anybody's project another batch size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from dlblocks.data.loader import TensorLoader
from dlblocks.errors import UserError, first_line
from dlblocks.tuning.contents import tensors


class Resizer:
    """Sets the batch size that a Trainer's training loader will have.

    Of a data module, or of a module that has its loader itself, an attribute is set, or a value of its hparams; a
    loader that `fit` was given is built anew.

    Args:
        trainer: in the middle of `fit`.
        attribute: of the data module or module.

    Raises:
        UserError: there is no such attribute, or the loader can't be built anew.
    """

    def __init__(self, trainer: pl.Trainer, attribute: str) -> None:
        self._source = trainer.fit_loop._data_source
        self._given = self._source.instance
        self.attribute = attribute
        self._holders: list[Any] = []
        if not self._source.is_module():
            self._loader = _checked(self._given)
            return
        hparams = getattr(self._given, "hparams", {})
        self._holders = [holder for holder in (self._given, hparams) if _holds(holder, attribute)]
        if not self._holders:
            raise UserError(
                f"{type(self._given).__name__}: has no attribute {attribute!r}, nor has its hparams, so its batch"
                " size can't be set. Name the attribute that its loader reads: find_batch_size(...,"
                " attribute=...)."
            )

    def set(self, size: int) -> None:
        """The next loader asked for has this size."""
        if not self._source.is_module():
            self._source.instance = resized(self._loader, size)
            return
        for holder in self._holders:
            _set(holder, self.attribute, size)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Afterwards the size is what it was."""
        given = self._source.instance
        values = [(holder, _value(holder, self.attribute)) for holder in self._holders]
        try:
            yield
        finally:
            self._source.instance = given
            for holder, value in values:
                if _value(holder, self.attribute) != value:
                    _set(holder, self.attribute, value)


def resized(loader: DataLoader[Any], size: int) -> DataLoader[Any]:
    """The same loader, of its own class, with another batch size."""
    before = loader.batch_sampler
    assert isinstance(before, BatchSampler)
    made = copy.copy(loader)
    # A loader does not let these be set.
    vars(made).update(
        batch_size=size, batch_sampler=BatchSampler(before.sampler, size, before.drop_last), _iterator=None
    )
    return made


def batch_sizes(loaders: Sequence[Any]) -> set[int]:
    """The sizes that loaders say their batches have; nothing of those that do not say."""
    sizes = (
        getattr(loader, "batch_size", None)
        or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        for loader in loaders
    )
    return {size for size in sizes if isinstance(size, int)}


def instances(loaders: Sequence[Any]) -> int | None:
    """Instances in an epoch of the loader with fewest: of all processes for a `TensorLoader`, as its batch size is,
    else of this process. None where a loader does not say."""
    counts = [_instances(loader) for loader in loaders]
    known = [one for one in counts if one is not None]
    return min(known) if known and len(known) == len(counts) else None


def guessed_count(batch: Any) -> int | None:
    """Instances in a batch, if its first tensor has one along its first dimension for each; None without tensors."""
    first = next(tensors(batch), None)
    return len(first) if first is not None and first.ndim else None


def contents(batch: Any) -> tuple[int, int] | None:
    """Tensors in a batch and their elements, which differ between batches of two sizes; None without tensors."""
    elements = [tensor.numel() for tensor in tensors(batch)]
    return (len(elements), sum(elements)) if elements else None


def effective_above(effective: int, most: int) -> UserError:
    """An update can't take more than an epoch has."""
    return UserError(
        f"data.effective_batch_size={effective}: must be at most {most}, the instances in the training set, since each"
        " update is made within an epoch."
    )


def _instances(loader: Any) -> int | None:
    if isinstance(loader, TensorLoader):
        return len(loader.x)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    sampled = getattr(loader.batch_sampler, "sampler", loader.batch_sampler and loader.sampler)
    return len(sampled) if isinstance(sampled, Sized) else None


def _checked(loader: Any) -> DataLoader[Any]:
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        raise UserError(
            f"train_dataloaders: a {type(loader).__name__} can't be built anew with another batch size. Give one"
            " torch DataLoader with a batch_size, or a data module that has an attribute for it."
        )
    return loader


def _holds(holder: Any, attribute: str) -> bool:
    return attribute in holder if isinstance(holder, dict) else hasattr(holder, attribute)


def _value(holder: Any, attribute: str) -> Any:
    return holder[attribute] if isinstance(holder, dict) else getattr(holder, attribute)


def _set(holder: Any, attribute: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[attribute] = value
        return
    try:
        setattr(holder, attribute, value)
    except AttributeError as error:
        raise UserError(
            f"{type(holder).__name__}.{attribute}: can't be set ({first_line(error)}). Name the attribute that holds the"
            " batch size: find_batch_size(..., attribute=...)."
        ) from error
