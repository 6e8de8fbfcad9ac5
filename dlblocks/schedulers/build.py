"""A learning-rate scheduler from its name and an optimizer, and what Lightning wants to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from dlblocks.errors import UserError
from dlblocks.records import Block
from dlblocks.registry import Spec, parse_whole

# The steps of the run, or what counts them when a scheduler needs to know.
Total: TypeAlias = "float | Callable[[], float | None] | None"


def scheduler(
    spec: Spec,
    optimizer: Optimizer,
    /,
    *,
    total_steps: Total = None,
    mode: str = "min",
    where: str = "scheduler",
    **params: Any,
) -> LRScheduler:
    """A scheduler of an optimizer's learning rate.

    `spec` is a name, a `{name: ..., params}` mapping, a class or partial called with the optimizer, or
    a ready scheduler of this optimizer.

    Args:
        spec: which scheduler.
        optimizer: the optimizer whose groups it moves.
        total_steps: optimizer steps of the whole run, or a function that counts them.
        mode: whether the monitored metric is better when small (`min`) or large (`max`).
        where: the place in the config, for messages.
        params: its parameters, over those of `spec`.

    Raises:
        UserError: unknown name or parameter, a value that is not legal, or no total where the entry
            needs one.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> scheduler("linear_warmup", sgd, total_steps=100, warmup=0.2, start_factor=0.1).get_last_lr()
    [0.05]
    """
    if isinstance(spec, LRScheduler):
        return _ready(spec, optimizer, params, where)
    if callable(spec):
        return spec(optimizer, **params)  # type: ignore[no-any-return]
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"{where}: give an optimizer, not {type(optimizer).__name__}.")
    return _build(*parse_whole("scheduler", spec, params, where), optimizer, total_steps, mode, where)


def lightning_config(
    spec: Spec,
    optimizer: Optimizer,
    total_steps: Total = None,
    monitor: str | None = None,
    mode: str = "min",
    where: str = "scheduler",
) -> dict[str, Any]:
    """The `lr_scheduler` part of what Lightning's `configure_optimizers` returns.

    The entry's tags say whether it steps with each optimizer step or each epoch, and whether it watches
    `monitor`; a metric that is then missing is an error. Of a class, partial or ready scheduler, torch's
    cyclic ones step with each optimizer step, all others with each epoch.

    Raises:
        UserError: as `scheduler`, or no `monitor` for a scheduler that watches a metric.
    """
    if callable(spec) or isinstance(spec, LRScheduler):
        built = scheduler(spec, optimizer, where=where)
        interval = "step" if isinstance(built, (OneCycleLR, CyclicLR)) else "epoch"
        monitors = isinstance(built, ReduceLROnPlateau)
    else:
        block, given = parse_whole("scheduler", spec, {}, where)
        built = _build(block, given, optimizer, total_steps, mode, where)
        interval = block.tags.get("interval", "epoch")
        monitors = block.tags.get("monitor", False)
    config: dict[str, Any] = {"scheduler": built, "interval": interval, "frequency": 1}
    if monitors:
        if monitor is None:
            raise UserError(f"{where}: this scheduler watches a metric; say which one (monitor).")
        config |= {"monitor": monitor, "strict": True}
    return config


def _build(
    block: Block, params: Mapping[str, Any], optimizer: Optimizer, total_steps: Total, mode: str, where: str
) -> LRScheduler:
    from_run: dict[str, Any] = {}
    if block.tags.get("needs_total"):
        from_run["total_steps"] = _total(total_steps, block.name, where)
    if block.tags.get("monitor"):
        if mode not in ("min", "max"):
            raise UserError(f"{where}: mode={mode!r} of the monitored metric must be 'min' or 'max'.")
        from_run["mode"] = mode
    try:
        return block.load()(optimizer, **from_run, **params)  # type: ignore[no-any-return]
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _total(total_steps: Total, name: str, where: str) -> int:
    total = total_steps() if callable(total_steps) else total_steps
    if total is None or math.isinf(total):
        raise UserError(
            f"{where}={name}: needs the number of steps of the run, which the Trainer gives: set"
            " trainer.max_epochs or trainer.max_steps."
        )
    if total < 1 or not float(total).is_integer():
        raise UserError(f"{where}={name}: the run must have a whole number of steps >= 1, got {total}.")
    return int(total)


def _ready(ready: LRScheduler, optimizer: Optimizer, params: Mapping[str, Any], where: str) -> LRScheduler:
    if params:
        raise UserError(f"{where}: a ready scheduler takes no parameters, got {', '.join(params)}.")
    if ready.optimizer is not optimizer:
        raise UserError(
            f"{where}: this {type(ready).__name__} belongs to another optimizer, so it would change"
            " nothing. Give its name, or a partial that takes the optimizer."
        )
    return ready
