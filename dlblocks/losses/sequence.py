"""Losses of sequences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.metric import ArgumentsLoss


class CTC(ArgumentsLoss):
    """`-log sum over alignments prod_t p_t`: labels without knowing when (Graves et al. 2006).

    Called with `(log_probs, targets, input_lengths, target_lengths)`, as torch's: `(T, N, C)` log-probabilities
    of which class `blank` is none, `(N, S)` labels, and `(N,)` lengths. `mean` is torch's: each sequence's value
    is divided by the length of its target.

    Args:
        blank: the class that is no label.
        zero_infinity: a target that does not fit in its input costs nothing, instead of infinity.
        reduction: `none`, `mean` or `sum`; with `none` and `sum` values are not divided.

    Raises:
        ValueError: a reduction that it doesn't have.
    """

    def __init__(self, blank: int = 0, zero_infinity: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.blank, self.zero_infinity = blank, zero_infinity

    def each(
        self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
    ) -> Tensor:
        values = F.ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            blank=self.blank,
            zero_infinity=self.zero_infinity,
            reduction="none",
        )
        return values / torch.as_tensor(target_lengths).clamp_min(1) if self.reduction == "mean" else values
