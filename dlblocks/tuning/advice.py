"""What a batch size means for the gradient: how well a batch stands for the classes, and where noise ends."""

from __future__ import annotations

import math
from collections.abc import Sequence


def class_deviation(counts: Sequence[int], size: int) -> float:
    """The expected distance between the class shares of a random batch and those of the data set.

    The distance is that of total variation, half the sum of |n_k / B - p_k|, from 0 to 1. With n_k drawn without
    replacement, each term has about the mean absolute value of a normal distribution:

        E = 1/2 sum_k sqrt(2 / pi) sqrt(p_k (1 - p_k) / B (N - B) / (N - 1))

    Args:
        counts: instances of each class in the data set; N in all.
        size: B, instances in a batch.

    >>> round(class_deviation([100] * 10, 10), 2), round(class_deviation([100] * 10, 100), 2)
    (0.38, 0.11)
    """
    total = sum(counts)
    if total < 2 or size >= total:
        return 0.0
    rest = (total - size) / (total - 1)
    shares = [count / total for count in counts]
    deviations = (math.sqrt(p * (1 - p) / size * rest) for p in shares)
    return math.sqrt(2 / math.pi) / 2 * sum(deviations)


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
