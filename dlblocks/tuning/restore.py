"""Leave a Trainer, a module and the random state as they were, whatever happens in between."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from dlblocks.probing import random_states

# What trials replace in a Trainer and its strategy.
_TRAINER = ("callbacks", "loggers", "limit_train_batches", "limit_val_batches", "should_stop", "state")
_STRATEGY = ("_lightning_module", "optimizers", "lr_scheduler_configs")


@contextmanager
def untouched(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Run trials, on copies of the module, inside the Trainer; afterwards, also after an exception or
    Ctrl-C, everything in it is what it was.

    Put back: random states (Python, NumPy, torch and CUDA), callbacks, loggers, limits, optimizers,
    schedulers and module of the Trainer, and the mode (training or evaluation) of each part of the
    module. Weights and buffers are not put back, since no trial may touch them.
    """
    strategy = trainer.strategy
    kept = {name: getattr(trainer, name) for name in _TRAINER} | {"state": copy.copy(trainer.state)}
    of_strategy = {name: getattr(strategy, name) for name in _STRATEGY}
    modes = [(part, part.training) for part in module.modules()]
    try:
        with random_states():
            yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
        for name, value in of_strategy.items():
            setattr(strategy, name, value)
        for part, training in modes:
            part.training = training


@contextmanager
def same_order(loader: Any) -> Iterator[None]:
    """Iterate over a loader, which afterwards serves the batches that it would have served.

    Put back: the state of a loader that has one (`state_dict`), and the generators of a `DataLoader` and
    its samplers.
    """
    place = loader.state_dict() if _stateful(loader) else None
    try:
        with unmoved_generators([generator for generator in _generators(loader) if generator is not None]):
            yield
    finally:
        if place is not None:
            loader.load_state_dict(place)


def generators_of(owner: Any) -> list[torch.Generator]:
    """The generators that a module or data module holds, by itself or in loaders that it keeps."""
    values = vars(owner).values() if owner is not None else ()
    held = [value for value in values if isinstance(value, torch.Generator)]
    of_loaders = [generator for value in values for generator in _generators(value)]
    return [*held, *(generator for generator in of_loaders if generator is not None)]


@contextmanager
def unmoved_generators(generators: list[torch.Generator]) -> Iterator[None]:
    """Put the states of some generators back."""
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _stateful(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(
        getattr(loader, "load_state_dict", None)
    )


def _generators(loader: Any) -> list[torch.Generator | None]:
    if not isinstance(loader, DataLoader):
        return []
    inner = getattr(loader.batch_sampler, "sampler", None)
    holders = (loader, loader.sampler, loader.batch_sampler, inner)
    return [getattr(holder, "generator", None) for holder in holders]


def detached_copy(module: pl.LightningModule, trainer: pl.Trainer) -> pl.LightningModule:
    """A copy that a trial may spoil: it sees the Trainer, and what it logs goes nowhere."""
    made = copy.deepcopy(module)
    made.trainer = trainer
    for part in made.modules():
        _clear_gradients(part)
    return made


def _clear_gradients(part: nn.Module) -> None:
    for parameter in part.parameters(recurse=False):
        parameter.grad = None
