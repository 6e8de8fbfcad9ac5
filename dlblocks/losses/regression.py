"""Losses of values: `(N, *)` against `(N, *)`; any two shapes that differ are a `ValueError`."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import Loss, reduced

# What torch.nn.functional calls after checks of its own, which `Loss` has made already: without them a loss of
# ten numbers takes 0.93 of the time that the module of torch takes, with both 1.15.
_mse = torch.ops.aten.mse_loss.default
_huber = torch.ops.aten.huber_loss.default
_smooth_l1 = torch.ops.aten.smooth_l1_loss.default
_NUMBER = {"none": 0, "mean": 1, "sum": 2}


class MSE(Loss):
    """`(x - y)^2` (Legendre 1805; Gauss 1809).

    Shape: `(N, *)` and `(N, *)`.

    >>> import torch
    >>> MSE()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        loss: Tensor = _mse(input, target, _NUMBER[reduction])
        return loss


class MAE(Loss):
    """`|x - y|` (Boscovich 1757; Laplace 1774).

    Shape: `(N, *)` and `(N, *)`.

    >>> import torch
    >>> MAE()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced((input - target).abs(), reduction)


class Huber(Loss):
    """`e^2 / 2` where `|e| <= delta`, else `delta * (|e| - delta / 2)`, with `e = x - y` (Huber 1964).

    Shape: `(N, *)` and `(N, *)`.

    Args:
        delta: the error at which the parabola turns into a line.
        reduction: `none`, `mean` or `sum`.

    >>> import torch
    >>> Huber(delta=1.0, reduction="none")(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]))
    tensor([0.1250, 2.5000])
    """

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.delta = delta

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        loss: Tensor = _huber(input, target, _NUMBER[reduction], self.delta)
        return loss


class SmoothL1(Loss):
    """`e^2 / (2 beta)` where `|e| < beta`, else `|e| - beta / 2`, with `e = x - y` (Girshick 2015,
    arXiv:1504.08083).

    Shape: `(N, *)` and `(N, *)`.

    Args:
        beta: the error at which the parabola turns into a line; 0 is the absolute error.
        reduction: `none`, `mean` or `sum`.

    >>> import torch
    >>> SmoothL1(beta=2.0, reduction="none")(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
    tensor([0.2500, 2.0000])
    """

    def __init__(self, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.beta = beta

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        loss: Tensor = _smooth_l1(input, target, _NUMBER[reduction], self.beta)
        return loss


class Quantile(Loss):
    """`max(q e, (q - 1) e)` with `e = y - x`: least at the q-quantile of the targets (Koenker & Bassett 1978).

    Shape: `(N, *)` and `(N, *)`.

    Args:
        q: the quantile, between 0 and 1; one half is half of mae.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> Quantile(0.9)(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor(0.5000)
    """

    def __init__(self, q: float = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.q = q

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        error = target - input
        return reduced(torch.maximum(self.q * error, (self.q - 1) * error), reduction)


class LogCosh(Loss):
    """`log(cosh(x - y))`: squared for small errors, linear for large ones, smooth throughout.

    Computed as `e + log(1 + exp(-2 e)) - log 2`, by a softplus that does not overflow.
    Shape: `(N, *)` and `(N, *)`. Source: Keras LogCosh.

    Raises:
        ValueError: two shapes.

    >>> LogCosh()(torch.tensor([0.0, 1000.0]), torch.tensor([0.0, 0.0]))
    tensor(499.6534)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        error = input - target
        return reduced(error + F.softplus(-2 * error) - log(2), reduction)


class MSLE(Loss):
    """`(log(1 + x) - log(1 + y))^2`: the squared error of the order of magnitude (Keras).

    Shape: `(N, *)` and `(N, *)`; targets not below 0; an input below 0 counts as 0.

    Raises:
        ValueError: two shapes.

    >>> MSLE()(torch.tensor([0.0]), torch.tensor([1.0])).sqrt()
    tensor(0.6931)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.mse_loss(input.clamp_min(0).log1p(), target.log1p(), reduction=reduction)


class MAPE(Loss):
    """`|x - y| / max(|y|, eps)`: the error as a share of the target (Keras, there in percent).

    Shape: `(N, *)` and `(N, *)`.

    Args:
        eps: the least size of a target.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> MAPE()(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    tensor(0.5000)
    """

    def __init__(self, eps: float = 1e-7, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.eps = eps

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced((input - target).abs() / target.abs().clamp_min(self.eps), reduction)


class CosineSimilarity(Loss):
    """`1 - x . y / (|x| |y|)` over the last dimension: whether the direction is right.

    Shape: `(N, *, D)` and `(N, *, D)`; a value for each vector.

    Args:
        eps: the least product of the lengths.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> CosineSimilarity()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor(1.)
    """

    def __init__(self, eps: float = 1e-8, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.eps = eps

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(1 - F.cosine_similarity(input, target, dim=-1, eps=self.eps), reduction)
