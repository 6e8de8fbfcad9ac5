"""Schedulers that go up and down several times in a run; see `curves`.

T is the number of steps of the whole run, p = t / T.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import chain, pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dlblocks.errors import UserError


def cosine_restarts(
    optimizer: Optimizer,
    total_steps: int,
    cycles: int = 3,
    growth: float = 1.0,
    peak_decay: float = 1.0,
    min_lr_ratio: float = 0.0,
) -> LambdaLR:
    """Cycle i = 0, 1, ... falls as r + (d^i - r) (1 + cos(pi q)) / 2, q its share that is over; r from T on.

    The cycles fill the run, each `growth` times as long as the one before, in whole steps; d is
    `peak_decay`, r is `min_lr_ratio`. Source: Loshchilov & Hutter 2016, arXiv:1608.03983.

    Raises:
        UserError: so many cycles that one would have no step.
    """
    parts = [growth**i for i in range(cycles)]
    bounds = [round(total_steps * sum(parts[:i]) / sum(parts)) for i in range(cycles + 1)]
    if any(a == b for a, b in pairwise(bounds)):
        raise UserError(
            f"cycles={cycles}: a run of {total_steps} steps has no room for them"
            + (f" with growth={growth:g}." if growth != 1 else ".")
        )
    return LambdaLR(
        optimizer, partial(_cosine_restarts, bounds=bounds, peak_decay=peak_decay, floor=min_lr_ratio)
    )


def cyclic(
    optimizer: Optimizer,
    total_steps: int,
    cycles: int = 4,
    base_factor: float = 0.25,
    shape: str = "triangular",
    gamma: float = 0.999,
) -> LambdaLR:
    """f(t) = b + (1 - b) h(t) max(0, 1 - |2 q - 1|), q the fractional part of `cycles` p; b from T on.

    b is `base_factor`; h(t) is 1 (`triangular`), 2^-floor(`cycles` p) (`triangular2`) or `gamma`^t
    (`exp_range`). Source: Smith 2015, arXiv:1506.01186.
    """
    return LambdaLR(
        optimizer,
        partial(_cyclic, total=total_steps, cycles=cycles, base=base_factor, shape=shape, gamma=gamma),
    )


def chebyshev(optimizer: Optimizer, total_steps: int, condition: float = 20.0) -> LambdaLR:
    """f(t) = 1 / ((1 + c) / 2 - (1 - c) / 2 cos(pi (s_t + 1/2) / T)), c = 1 / `condition`; 1 from T on.

    Steps far above lr between those near it, in the fractal order s_t that keeps gradient descent stable
    where lr = 1 / (largest curvature) and `condition` is the ratio of the largest to the smallest.
    Source: Agarwal et al. 2021, arXiv:2103.01338.
    """
    return LambdaLR(optimizer, partial(_chebyshev, order=_fractal(total_steps), least=1 / condition))


def piecewise(
    optimizer: Optimizer,
    total_steps: int,
    points: Sequence[float] = (0.3, 0.6, 0.9),
    factors: Sequence[float] = (0.3, 0.1, 0.03),
    interpolation: str = "linear",
) -> LambdaLR:
    """f = 1 at the start and `factors` at `points`, shares of the run; between them by `interpolation`.

    With a and b the factors on both sides and q the share of the way: `step` is a, `linear` a + (b - a) q,
    `cosine` a + (b - a) (1 - cos(pi q)) / 2. After the last point its factor stays.

    Raises:
        UserError: points that don't rise, or not one factor for each.
    """
    if len(points) != len(factors):
        raise UserError(f"factors: has {len(factors)} numbers for {len(points)} points; give one for each.")
    if any(a >= b for a, b in pairwise((0.0, *points))):
        raise UserError(f"points={list(points)}: must rise, from above 0.")
    places = [(0.0, 1.0), *zip((point * total_steps for point in points), factors, strict=True)]
    return LambdaLR(optimizer, partial(_piecewise, places=places, interpolation=interpolation))


def _cosine_restarts(t: int, *, bounds: Sequence[int], peak_decay: float, floor: float) -> float:
    if t >= bounds[-1]:
        return floor
    cycle = bisect_right(bounds, t) - 1
    q = (t - bounds[cycle]) / (bounds[cycle + 1] - bounds[cycle])
    return floor + (peak_decay**cycle - floor) * (1 + math.cos(math.pi * q)) / 2


def _cyclic(t: int, *, total: int, cycles: int, base: float, shape: str, gamma: float) -> float:
    if t >= total:
        return base
    # In whole numbers: the float product can fall short of a turn.
    cycle, within = divmod(t * cycles, total)
    height = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**t}[shape]
    return base + (1 - base) * height * (1 - abs(2 * within / total - 1))


def _fractal(total: int) -> list[int]:
    """The order of T steps: that of the next power of two, without the places beyond T.

    >>> _fractal(8)
    [0, 7, 3, 4, 1, 6, 2, 5]
    """
    order = [0]
    while len(order) < total:
        last = 2 * len(order) - 1
        order = list(chain.from_iterable((place, last - place) for place in order))
    return [place for place in order if place < total]


def _chebyshev(t: int, *, order: Sequence[int], least: float) -> float:
    if t >= len(order):
        return 1.0
    angle = math.pi * (order[t] + 0.5) / len(order)
    return 1 / ((1 + least) / 2 - (1 - least) / 2 * math.cos(angle))


def _piecewise(t: int, *, places: Sequence[tuple[float, float]], interpolation: str) -> float:
    following = next((i for i, (place, _) in enumerate(places) if place > t), None)
    if following is None:
        return places[-1][1]
    (start, a), (end, b) = places[following - 1], places[following]
    q = (t - start) / (end - start)
    share = {"step": 0.0, "linear": q, "cosine": (1 - math.cos(math.pi * q)) / 2}[interpolation]
    return (1 - share) * a + share * b
