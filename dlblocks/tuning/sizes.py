"""Giving the training loader of anybody's project another batch size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils.data import BatchSampler, DataLoader

from dlblocks.errors import UserError


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
        self._attribute = attribute
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
            _set(holder, self._attribute, size)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Afterwards the size is what it was."""
        given = self._source.instance
        values = [(holder, _value(holder, self._attribute)) for holder in self._holders]
        try:
            yield
        finally:
            self._source.instance = given
            for holder, value in values:
                _set(holder, self._attribute, value)


def resized(loader: DataLoader[Any], size: int) -> DataLoader[Any]:
    """The same loader with another batch size."""
    return DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=loader.sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def count(batch: Any) -> int:
    """Instances in a batch, whatever its structure."""
    return int(extract_batch_size(batch))


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
    else:
        setattr(holder, attribute, value)
