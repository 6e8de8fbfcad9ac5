"""The learning-rate range test: one net, a rate that grows with every step, and what its losses suggest.

Smith 2015, arXiv:1506.01186.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHING = 0.9
# A loss that has risen by so many times its first value, or its fall if that is larger, ends the test.
DIVERGED = 3.0


@dataclass(frozen=True)
class Curve:
    """Losses against rates.

    Args:
        rates: ascending, at equal distances in their logarithm.
        losses: the mean training loss at each, before the step.
        smooth: the same, smoothed.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]


def spaced(low: float, high: float, count: int) -> list[float]:
    """Rates at equal distances in their logarithm.

    >>> [round(rate, 6) for rate in spaced(1e-4, 1e-2, 3)]
    [0.0001, 0.001, 0.01]
    """
    ratio = math.log(high / low) / max(count - 1, 1)
    return [low * math.exp(ratio * i) for i in range(count)]


def mean_curve(rates: Sequence[float], runs: Sequence[Sequence[float]]) -> Curve:
    """The mean of several runs, as far as all of them went with finite losses, smoothed."""
    length = min(_finite_length(run) for run in runs)
    losses = [sum(run[i] for run in runs) / len(runs) for i in range(length)]
    return Curve(tuple(rates[:length]), tuple(losses), tuple(smoothed(losses)))


def smoothed(losses: Sequence[float], beta: float = SMOOTHING) -> list[float]:
    """The exponential mean of the losses, run forwards and backwards so that no loss is moved along the rates,
    each with the weights of its start corrected: m_i = sum_j beta^(i-j) l_j / sum_j beta^(i-j).

    >>> smoothed([1.0, 1.0, 1.0])
    [1.0, 1.0, 1.0]
    """
    forwards = _one_way(losses, beta)
    backwards = _one_way(losses[::-1], beta)[::-1]
    return [(a + b) / 2 for a, b in zip(forwards, backwards, strict=True)]


def diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss l is past l_0 + 3 max(|l_0|, l_0 - min l), which is 4 l_0 for positive losses; the
    differences hold for losses of any sign."""
    if not math.isfinite(losses[-1]):
        return True
    return losses[-1] > losses[0] + DIVERGED * max(losses[0] - min(losses), abs(losses[0]))


def minimum(curve: Curve) -> float:
    """A tenth of the rate with the lowest loss (fastai's `minimum`)."""
    return curve.rates[_lowest(curve)] / 10


def steepest(curve: Curve) -> float:
    """The rate where the loss falls fastest with the logarithm of the rate, before its minimum; not in the first
    tenth of the curve, where rates are too low to matter and few losses are in the mean."""
    smooth = curve.smooth
    inner = range(max(1, len(smooth) // 10), max(_lowest(curve), 2))
    if not inner or len(smooth) < 3:
        return curve.rates[_lowest(curve)]
    return curve.rates[min(inner, key=lambda i: smooth[i + 1] - smooth[i - 1])]


def valley(curve: Curve) -> float:
    """The middle of the longest falling subsequence of losses (fastai's `valley`); of several, of the one that
    begins last, so that a flat start does not count."""
    losses = curve.smooth
    # For each loss the length and the start of the longest one that ends there.
    best = [(1, i) for i in range(len(losses))]
    for i, loss in enumerate(losses):
        for length, start in [best[j] for j in range(i) if losses[j] > loss]:
            best[i] = max(best[i], (length + 1, start))
    last = max(range(len(losses)), key=lambda i: best[i])
    return curve.rates[(best[last][1] + last) // 2]


SUGGESTIONS = {"valley": valley, "steepest": steepest, "minimum": minimum}


def _lowest(curve: Curve) -> int:
    return curve.smooth.index(min(curve.smooth))


def _one_way(losses: Sequence[float], beta: float) -> list[float]:
    mean, weight, out = 0.0, 0.0, []
    for loss in losses:
        mean, weight = beta * mean + (1 - beta) * loss, beta * weight + (1 - beta)
        out.append(mean / weight)
    return out


def _finite_length(run: Sequence[float]) -> int:
    return next((i for i, loss in enumerate(run) if not math.isfinite(loss)), len(run))
