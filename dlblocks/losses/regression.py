"""Losses of values: `(N, *)` against `(N, *)`."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import Loss


class MSE(Loss):
    """`(x - y)^2`."""

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class MAE(Loss):
    """`|x - y|`."""

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class Huber(Loss):
    """`e^2 / 2` where `|e| <= delta`, else `delta * (|e| - delta / 2)`, with `e = x - y` (Huber 1964)."""

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.delta = delta

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class SmoothL1(Loss):
    """`e^2 / (2 beta)` where `|e| < beta`, else `|e| - beta / 2`, with `e = x - y` (Girshick 2015,
    arXiv:1504.08083)."""

    def __init__(self, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.beta = beta

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class PoissonNLL(Loss):
    """`exp(x) - y x`, the negative log-likelihood of counts `y` up to a constant; `x` is the logarithm of
    the rate. `full` adds Stirling's approximation of the constant where `y > 1`."""

    def __init__(self, full: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.full = full

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(input, target, log_input=True, full=self.full, reduction=self.reduction)
