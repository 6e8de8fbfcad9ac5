"""Schedulers whose factor on the learning rate is a function of the step alone.

They are evaluated anew at each step, so no rounding adds up. The state holds the place, not the curve:
a run resumed with another total follows the new curve from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dlblocks.errors import UserError


def constant(optimizer: Optimizer) -> LambdaLR:
    """f(t) = 1."""
    return LambdaLR(optimizer, level)


def cosine(optimizer: Optimizer, total_steps: int, min_lr_ratio: float = 0.0) -> LambdaLR:
    """f(t) = r + (1 - r) (1 + cos(pi t / T)) / 2 with r = `min_lr_ratio`; f(t) = r from T on.

    Source: Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts.
    """
    return LambdaLR(optimizer, partial(half_cosine, total=total_steps, floor=min_lr_ratio))


def linear_warmup(
    optimizer: Optimizer, total_steps: int, warmup: float = 0.1, start_factor: float = 0.01
) -> LambdaLR:
    """f(t) = s + (1 - s) min(t / W, 1) with s = `start_factor` and W = `warmup_steps(warmup, T)`.

    Source: Goyal et al. 2017, arXiv:1706.02677.

    Raises:
        UserError: `warmup` is neither below 1 nor whole.
    """
    return warmed(optimizer, total_steps, warmup, start_factor, level)


def warmup_cosine(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.1,
    start_factor: float = 0.01,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """f(t) = s + (1 - s) t / W for t < W, then r + (1 - r) (1 + cos(pi (t - W) / (T - W))) / 2.

    s = `start_factor`, r = `min_lr_ratio`, W = `warmup_steps(warmup, T)`; f(t) = r from T on.
    Sources: Goyal et al. 2017, arXiv:1706.02677; Loshchilov & Hutter 2016, arXiv:1608.03983.

    Raises:
        UserError: `warmup` is neither below 1 nor whole.
    """
    fall = partial(half_cosine, floor=min_lr_ratio)
    return warmed(optimizer, total_steps, warmup, start_factor, fall)


def warmup_steps(warmup: float, total_steps: int) -> int:
    """The length of a warm-up: below 1 a share of all steps, from 1 on a number of steps.

    Raises:
        UserError: 1.5 steps, for example.

    >>> warmup_steps(0.1, 200), warmup_steps(1, 200), warmup_steps(30, 200)
    (20, 1, 30)
    """
    if warmup < 1:
        return round(warmup * total_steps)
    if not float(warmup).is_integer():
        raise UserError(
            f"warmup={warmup:g}: must be below 1 (a share of all steps) or a whole number of steps."
        )
    return int(warmup)


def warmed(
    optimizer: Optimizer, total_steps: int, warmup: float, start: float, fall: Callable[..., float]
) -> LambdaLR:
    """A straight rise, then `fall` over what is left of the run."""
    steps = warmup_steps(warmup, total_steps)
    return LambdaLR(optimizer, partial(_warmed, total=total_steps, warmup=steps, start=start, fall=fall))


def half_cosine(t: float, *, total: float, floor: float) -> float:
    """From 1 down to the floor, where it stays."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(t / total, 1.0))) / 2


def level(t: int, *, total: int = 1) -> float:  # noqa: ARG001
    """1 at any time."""
    return 1.0


def _warmed(t: int, *, total: int, warmup: int, start: float, fall: Callable[..., float]) -> float:
    t = min(t, total)
    if t < warmup:
        return start + (1 - start) * t / warmup
    return fall(t - warmup, total=max(total - warmup, 1))
