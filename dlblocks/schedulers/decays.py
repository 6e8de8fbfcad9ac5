"""More schedulers whose factor on the learning rate is a function of the step alone; see `curves`.

T is the number of steps of the whole run, p = min(t / T, 1), r = `min_lr_ratio`.
"""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dlblocks.schedulers.curves import half_cosine, warmed, warmup_steps


def polynomial(
    optimizer: Optimizer, total_steps: int, power: float = 1.0, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """f(t) = r + (1 - r) (1 - p)^power: a straight line for power 1."""
    return LambdaLR(optimizer, partial(_polynomial, total=total_steps, power=power, floor=min_lr_ratio))


def warmup_polynomial(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.1,
    start_factor: float = 0.01,
    power: float = 1.0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """f(t) = s + (1 - s) t / W for t < W, then r + (1 - r) (1 - (t - W) / (T - W))^power; s = `start_factor`.

    Source: Devlin et al. 2018, arXiv:1810.04805 (power 1).

    Raises:
        UserError: `warmup` is neither below 1 nor whole.
    """
    fall = partial(_polynomial, power=power, floor=min_lr_ratio)
    return warmed(optimizer, total_steps, warmup, start_factor, fall)


def warmup_exponential(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.1,
    start_factor: float = 0.01,
    final_factor: float = 0.01,
) -> LambdaLR:
    """f(t) = s + (1 - s) t / W for t < W, then `final_factor`^((t - W) / (T - W)); s = `start_factor`.

    Raises:
        UserError: `warmup` is neither below 1 nor whole.
    """
    return warmed(optimizer, total_steps, warmup, start_factor, partial(_exponential, end=final_factor))


def tanh(
    optimizer: Optimizer,
    total_steps: int,
    lower: float = -6.0,
    upper: float = 3.0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """f(t) = r + (1 - r) (1 - tanh(lower (1 - p) + upper p)) / 2 (Hsueh et al. 2018, arXiv:1806.01593)."""
    return LambdaLR(
        optimizer, partial(_tanh, total=total_steps, lower=lower, upper=upper, floor=min_lr_ratio)
    )


def inverse_time(optimizer: Optimizer, decay_rate: float = 0.1) -> LambdaLR:
    """f(t) = 1 / (1 + decay_rate t), t in epochs."""
    return LambdaLR(optimizer, partial(_inverse_time, rate=decay_rate))


def inverse_sqrt(optimizer: Optimizer, total_steps: int, warmup: float = 0.1) -> LambdaLR:
    """f(t) = (t + 1) / W while t < W, then sqrt(W / (t + 1)); W = `warmup_steps(warmup, T)`, at least 1.

    Source: Vaswani et al. 2017, arXiv:1706.03762, with the peak at the optimizer's rate.

    Raises:
        UserError: `warmup` is neither below 1 nor whole.
    """
    return LambdaLR(optimizer, partial(_inverse_sqrt, warmup=max(warmup_steps(warmup, total_steps), 1)))


def warmup_stable_decay(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.1,
    decay: float = 0.2,
    min_lr_ratio: float = 0.0,
    shape: str = "linear",
) -> LambdaLR:
    """f(t) = (t + 1) / W while t < W, then 1, and over the last share `decay` of the run down to r.

    With q the share of that fall that is over, it follows 1 - q (`linear`), 1 - sqrt(q) (`sqrt`), 1 - q^2
    (`square`), or (1 + cos(pi q)) / 2 (`cosine`).

    Source: Hu et al. 2024, arXiv:2404.06395; shapes: Hägele et al. 2024, arXiv:2405.18392.

    Raises:
        UserError: `warmup` is neither below 1 nor whole.
    """
    steps = warmup_steps(warmup, total_steps)
    return LambdaLR(
        optimizer,
        partial(
            _warmup_stable_decay,
            total=total_steps,
            warmup=steps,
            decay=decay,
            floor=min_lr_ratio,
            shape=shape,
        ),
    )


def flat_cosine(
    optimizer: Optimizer, total_steps: int, pct_start: float = 0.75, min_lr_ratio: float = 0.0
) -> LambdaLR:
    """f(t) = 1 for the share `pct_start` of the run, then half a cosine to r at its end (fastai)."""
    return LambdaLR(optimizer, partial(_flat_cosine, total=total_steps, start=pct_start, floor=min_lr_ratio))


def rex(optimizer: Optimizer, total_steps: int, min_lr_ratio: float = 0.0) -> LambdaLR:
    """f(t) = r + (1 - r) (1 - p) / (1 - p / 2): falls late (Chen et al. 2021, arXiv:2107.04197)."""
    return LambdaLR(optimizer, partial(_rex, total=total_steps, floor=min_lr_ratio))


def _exponential(t: int, *, total: int, end: float) -> float:
    return math.pow(end, min(t / total, 1.0))


def _tanh(t: int, *, total: int, lower: float, upper: float, floor: float) -> float:
    p = min(t / total, 1.0)
    return floor + (1 - floor) * (1 - math.tanh(lower * (1 - p) + upper * p)) / 2


def _polynomial(t: int, *, total: int, power: float, floor: float) -> float:
    return floor + (1 - floor) * math.pow(1 - min(t / total, 1.0), power)


def _inverse_time(t: int, *, rate: float) -> float:
    return 1 / (1 + rate * t)


def _inverse_sqrt(t: int, *, warmup: int) -> float:
    return (t + 1) / warmup if t < warmup else math.sqrt(warmup / (t + 1))


def _warmup_stable_decay(t: int, *, total: int, warmup: int, decay: float, floor: float, shape: str) -> float:
    t = min(t, total)
    rising = min((t + 1) / warmup, 1.0) if warmup else 1.0
    left = min((total - t) / (decay * total), 1.0)
    match shape:
        case "linear":
            height = left
        case "sqrt":
            height = 1 - math.sqrt(1 - left)
        case "square":
            height = 1 - (1 - left) ** 2
        case _:
            height = half_cosine(1 - left, total=1, floor=0.0)
    return rising * (floor + (1 - floor) * height)


def _flat_cosine(t: int, *, total: int, start: float, floor: float) -> float:
    return half_cosine(max(t / total - start, 0.0), total=1 - start, floor=floor)


def _rex(t: int, *, total: int, floor: float) -> float:
    left = 1 - min(t / total, 1.0)
    return floor + (1 - floor) * left / (0.5 + 0.5 * left)
