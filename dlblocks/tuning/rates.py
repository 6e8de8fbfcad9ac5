"""The learning rates inside optimizers and schedulers, where ratios between groups must be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from dlblocks.tuning.schedules import OF_GROUPS, peaks, rates_in

Change = Callable[[Any], Any]


def base_rates(optimizer: Optimizer, schedulers: Iterable[Any] = ()) -> list[float]:
    """The rate of each group that a scheduler starts from: the maximum of a one-cycle schedule, or of a cyclic one if its
    scheduler is given, else the rate before any schedule.

    >>> from torch import nn
    >>> sgd = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]}], lr=0.5)
    >>> _ = torch.optim.lr_scheduler.LinearLR(sgd, start_factor=0.5)
    >>> sgd.param_groups[0]["lr"], base_rates(sgd)
    (0.25, [0.5])
    """
    groups = optimizer.param_groups
    for scheduler in schedulers:
        if (highest := peaks(scheduler, len(groups))) is not None:
            return highest
    return [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups]


def set_rates(optimizer: Optimizer, bases: Sequence[float], rate: float) -> None:
    """Set the first group's rate, and the others' so that their ratios are those of `bases`."""
    for group, own in zip(optimizer.param_groups, bases, strict=True):
        _put(group, "lr", rate * (own / bases[0] if bases[0] else 1.0))


def scale_rates(optimizer: Optimizer, schedulers: Iterable[Any], factor: float) -> None:
    """Multiply every rate in an optimizer and its schedulers: as if it had been built with other rates.

    Of torch's schedulers the floors, of `ReduceLROnPlateau` or the `eta_min` of a cosine, are rates of their own and
    stay.

    Raises:
        UserError: a scheduler that is not torch's keeps rates that are not found.
    """
    _change(optimizer, schedulers, lambda value: value * factor)


def replace_rates(optimizer: Optimizer, schedulers: Iterable[Any], rate: float) -> Change:
    """Give an optimizer, which may have been built with lr=0, and its schedulers another rate: the others in
    proportion to the first group's, or all the same where that is 0, as `set_rates` does.

    Returns:
        what makes of a rate that is kept elsewhere the new one.

    Raises:
        UserError: as `scale_rates`.
    """
    schedulers = list(schedulers)
    before = base_rates(optimizer, schedulers)[0]

    def change(value: Any) -> Any:
        # The rate itself is not rounded.
        return value * 0 + rate if not before or value == before else value * (rate / before)

    _change(optimizer, schedulers, change)
    return change


def check_schedulers(optimizer: Optimizer, schedulers: Iterable[Any]) -> None:
    """Learn before a search whether the schedulers can be given another rate.

    Raises:
        UserError: as `scale_rates`.
    """
    for scheduler in schedulers:
        rates_in(optimizer, scheduler)


def _change(optimizer: Optimizer, schedulers: Iterable[Any], change: Change) -> None:
    places = [place for scheduler in schedulers for place in rates_in(optimizer, scheduler)]
    places += [(group, key) for group in optimizer.param_groups for key in OF_GROUPS if key in group]
    # Groups that are added later have the rate of the defaults.
    if isinstance(optimizer.defaults.get("lr"), (float, int, torch.Tensor)):
        places.append((optimizer.defaults, "lr"))
    # One tensor may be the rate in several places, so all are read before any is written.
    new = [_changed(holder[key], change) for holder, key in places]
    for (holder, key), value in zip(places, new, strict=True):
        _put(holder, key, value)


def _changed(value: Any, change: Change) -> Any:
    return [change(rate) for rate in value] if isinstance(value, list) else change(value)


def _put(holder: dict[str, Any], key: str, value: Any) -> None:
    """A rate that is a tensor stays the same tensor."""
    if isinstance(holder[key], torch.Tensor):
        holder[key].fill_(value)
    else:
        holder[key] = value
