"""The learning rates inside optimizers and schedulers, where ratios between groups must be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# Of a parameter group: the rate itself, and the rates that schedulers keep there.
_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
# Of a scheduler: the rates of all groups that its rule starts from.
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "_last_lr", "min_lrs")


def base_rates(optimizer: Optimizer) -> list[float]:
    """The rate of each group that a scheduler starts from: the maximum of a one-cycle schedule, else the
    rate before any schedule.

    >>> from torch import nn
    >>> sgd = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}], lr=0.5)
    >>> _ = torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.5)
    >>> sgd.param_groups[0]["lr"], base_rates(sgd)
    (0.25, [0.5])
    """
    return [
        float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in optimizer.param_groups
    ]


def set_rates(optimizer: Optimizer, bases: Sequence[float], rate: float) -> None:
    """Set the first group's rate, and the others' so that their ratios are those of `bases`."""
    for group, own in zip(optimizer.param_groups, bases, strict=True):
        value = rate * (own / bases[0] if bases[0] else 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def scale_rates(optimizer: Optimizer, schedulers: Iterable[Any], factor: float) -> None:
    """Multiply every rate in an optimizer and its schedulers: as if it had been built with other rates.

    The floor of `ReduceLROnPlateau` is a rate of its own and stays.
    """
    _change(optimizer, schedulers, lambda value: value * factor)


def replace_rates(optimizer: Optimizer, schedulers: Iterable[Any], rate: float) -> None:
    """Give an optimizer, which may have been built with lr=0, and its schedulers another rate: the others in
    proportion to the first group's, or all the same where that is 0, as `set_rates` does."""
    before = base_rates(optimizer)[0]
    if before:
        scale_rates(optimizer, schedulers, rate / before)
    else:
        _change(optimizer, schedulers, lambda value: value * 0 + rate)


def _change(optimizer: Optimizer, schedulers: Iterable[Any], change: Callable[[Any], Any]) -> None:
    for group in optimizer.param_groups:
        for key in _OF_GROUPS:
            if key in group:
                group[key] = change(group[key])
    for scheduler in schedulers:
        _change_scheduler(scheduler, change)


def _change_scheduler(scheduler: Any, change: Callable[[Any], Any]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _change_scheduler(inner, change)
    if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
        return
    for name in _OF_SCHEDULERS:
        if isinstance(values := getattr(scheduler, name, None), list):
            setattr(scheduler, name, [change(value) for value in values])
