"""What a batch size means for the gradient: how well a batch stands for the classes, and where noise ends."""

from __future__ import annotations

import math
from collections.abc import Sequence


def class_deviation(counts: Sequence[int], size: int) -> float:
    """The expected distance between the class shares of a random batch and those of the data set.

    The distance is that of total variation, half the sum of |n_k / B - N_k / N|, from 0 to 1. With B instances drawn
    without replacement, n_k is hypergeometric, with the mean absolute deviation

        E|n_k - B N_k / N| = 2 m (N - N_k - B + m) / N P(n_k = m),   m = floor(B N_k / N) + 1

    Args:
        counts: N_k, instances of each class in the data set; N in all.
        size: B, instances in a batch.

    >>> round(class_deviation([100] * 10, 1), 4), round(class_deviation([100] * 10, 100), 4)
    (0.9, 0.1126)
    """
    total = sum(counts)
    if size >= total:
        return 0.0
    return sum(_absolute_deviation(count, size, total) for count in counts) / (2 * size)


def _absolute_deviation(count: int, size: int, total: int) -> float:
    """Of the number of instances of a class in a batch."""
    if count in (0, total):
        return 0.0
    beyond = size * count // total + 1
    rest = total - count - size + beyond
    ways = _log_choose(count, beyond) + _log_choose(total - count, size - beyond) - _log_choose(total, size)
    return 2 * beyond * rest / total * math.exp(ways)


def _log_choose(of: int, chosen: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(chosen + 1) - math.lgamma(of - chosen + 1)


def noise_scale(small: float, large: float, size: int, batches: int) -> float | None:
    """The simple noise scale tr(S) / |G|^2: the batch size at which noise and gradient are equally long. Up to it
    a larger batch saves steps; far above, it only costs instances. McCandlish et al. 2018, arXiv:1812.06162,
    appendix A.1, with the unbiased estimates

        |G|^2 = (B_l |g_l|^2 - B_s |g_s|^2) / (B_l - B_s),   tr(S) = (|g_s|^2 - |g_l|^2) / (1 / B_s - 1 / B_l)

    Args:
        small: the mean of |g_s|^2, the squared lengths of the gradients of batches of B_s = `size`.
        large: |g_l|^2, of the mean of these gradients, with B_l = `size` times `batches`.
        size: instances in a batch.
        batches: how many.

    Returns:
        The scale in instances; None where the estimate is not positive, as with few or very noisy batches.
    """
    if batches < 2:
        return None
    wide = size * batches
    squared = (wide * large - size * small) / (wide - size)
    trace = (small - large) / (1 / size - 1 / wide)
    return trace / squared if squared > 0 and trace > 0 else None
