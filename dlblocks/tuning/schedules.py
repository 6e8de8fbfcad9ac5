"""Where schedulers keep learning rates, also those of other libraries."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dlblocks.errors import UserError, first_line
from dlblocks.probing import random_states

# Of a parameter group: the rate itself, and the rates that schedulers keep there.
OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
# Of a scheduler: the rates of all groups that its rule starts from.
_OF_TORCH = frozenset({"base_lrs", "max_lrs", "_last_lr", "min_lrs"})
# What other libraries call a rate: `max_lr`, `warmup_lr_init`, `eta_min`; and the lists of them in timm's schedulers.
_NAMED = re.compile(r"(^|_)(lrs?|eta)(_|$)|^base_values$|^warmup_steps$")
# A scheduler of another library is tried for so many steps.
_TRIED = 100

# Attributes with rates, by their names, for each part of a scheduler.
Names = list[list[str]]


def is_number(value: Any) -> bool:
    """Whether it may be a rate; True and False are numbers to Python."""
    return isinstance(value, Real) and not isinstance(value, bool)


def parts(scheduler: Any) -> list[Any]:
    """A scheduler and those in it."""
    found, waiting = list[Any](), [scheduler]
    while waiting:
        one = waiting.pop(0)
        if hasattr(one, "__dict__") and all(one is not other for other in found):
            found.append(one)
            waiting += getattr(one, "_schedulers", ())
            waiting += [inner for inner in vars(one).values() if isinstance(inner, LRScheduler)]
    return found


def peaks(scheduler: Any, groups: int) -> list[float] | None:
    """The highest rate of each group, of a scheduler that says so, as a cyclic one does."""
    for part in parts(scheduler):
        for name in ("max_lrs", "max_lr"):
            if rates := _rates(getattr(part, name, None)):
                return [float(rate) for rate in itertools.islice(itertools.cycle(rates), groups)]
    return None


def rates_in(optimizer: Optimizer, scheduler: Any) -> list[tuple[dict[str, Any], str]]:
    """The attributes of a scheduler that hold rates, each as a place in a dictionary.

    Of what is not torch's: what has torch's names, then also what has the name of a rate, what is equal to a rate of the
    optimizer, or both, until with doubled rates the scheduler gives the double of what it gave.

    Raises:
        UserError: none of these are all of its rates.
    """
    names = _names(optimizer, scheduler)
    return [(vars(part), name) for part, held in zip(parts(scheduler), names, strict=True) for name in held]


def _names(optimizer: Optimizer, scheduler: Any) -> Names:
    def held(*kinds: Callable[[str, list[Any]], bool]) -> Names:
        return [
            [
                name
                for name, value in vars(part).items()
                if (rates := _rates(value)) and any(kind(name, rates) for kind in kinds)
            ]
            for part in parts(scheduler)
        ]

    def torchs(name: str, _: list[Any]) -> bool:
        return name in _OF_TORCH

    if all(type(part).__module__.startswith("torch.") for part in parts(scheduler)):
        return [
            [] if isinstance(part, ReduceLROnPlateau) else names
            for part, names in zip(parts(scheduler), held(torchs), strict=True)
        ]
    now = {float(group[key]) for group in optimizer.param_groups for key in OF_GROUPS if key in group}

    def named(name: str, _: list[Any]) -> bool:
        return _NAMED.search(name) is not None

    def equal(_: str, rates: list[Any]) -> bool:
        return any(rate and float(rate) in now for rate in rates)

    failure = ""
    for kinds in ((torchs,), (torchs, named), (torchs, equal), (torchs, named, equal)):
        names = held(*kinds)
        try:
            if _doubles(optimizer, scheduler, names):
                return names
        except Exception as error:  # whatever the code of others raises
            failure = f" Tried out, it fails: {first_line(error)}"
    raise UserError(
        f"{type(scheduler).__name__}: keeps learning rates of its own, so that a found rate would be lost at its first"
        " step. Find the rate before fit, with find_lr, and build optimizer and scheduler with it; or take a scheduler"
        f" of torch.{failure}"
    )


def _rates(value: Any) -> list[Any]:
    """Numbers that may be rates; empty where there is anything else."""
    numbers = value if isinstance(value, list) else [value]
    legal = all(n.numel() == 1 if isinstance(n, torch.Tensor) else is_number(n) for n in numbers)
    return numbers if legal else []


def _doubles(optimizer: Optimizer, scheduler: Any, names: Names) -> bool:
    once, twice = (_course(optimizer, scheduler, names, factor) for factor in (1.0, 2.0))
    # What is next to nothing may be a constant, such as the smallest step of a plateau's.
    least = 1e-6 * max(map(abs, once), default=0.0)
    return all(math.isclose(2 * a, b, rel_tol=1e-3, abs_tol=least) for a, b in zip(once, twice, strict=True))


def _course(optimizer: Optimizer, scheduler: Any, names: Names, factor: float) -> list[float]:
    """The rates that a copy of the scheduler gives, with some attributes multiplied."""
    groups = [
        {
            **{key: copy.deepcopy(value) for key, value in group.items() if key != "params"},
            "params": [nn.Parameter(torch.zeros(1))],
        }
        for group in optimizer.param_groups
    ]
    stand_in = SGD(groups, lr=0.0)
    # Neither the optimizer nor its weights, nor a net that the scheduler knows, are copied.
    known: dict[int, Any] = {id(optimizer): stand_in}
    known |= {id(p): p for group in optimizer.param_groups for p in group["params"]}
    one = copy.deepcopy(scheduler, known)
    for part, held in zip(parts(one), names, strict=True):
        for name in held:
            value = vars(part)[name]
            vars(part)[name] = (
                [rate * factor for rate in value] if isinstance(value, list) else value * factor
            )
    for group in stand_in.param_groups:
        group.update({key: group[key] * factor for key in OF_GROUPS if key in group})
    return list(_steps(one, stand_in))


def _steps(scheduler: Any, optimizer: Optimizer) -> Iterator[float]:
    # The latter is timm's, of a schedule by steps.
    advances = [getattr(scheduler, name) for name in ("step", "step_update") if hasattr(scheduler, name)]
    with random_states(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer steps here
        for step in range(_TRIED):
            for advance in advances:
                # Some take an epoch, or the metric that they watch.
                advance(*([step + 1] if _needs_argument(advance) else []))
            yield from (float(group["lr"]) for group in optimizer.param_groups)


def _needs_argument(function: Callable[..., Any]) -> bool:
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(function).parameters.values()
    )
