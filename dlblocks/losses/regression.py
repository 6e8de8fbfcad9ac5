"""Losses of values: `(N, *)` against `(N, *)`; any two shapes that differ are a `ValueError`."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import Loss


class MSE(Loss):
    """`(x - y)^2` (Legendre 1805; Gauss 1809).

    Shape: `(N, *)` and `(N, *)`.

    >>> import torch
    >>> MSE()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class MAE(Loss):
    """`|x - y|` (Boscovich 1757; Laplace 1774).

    Shape: `(N, *)` and `(N, *)`.

    >>> import torch
    >>> MAE()(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.)
    """

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


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

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


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

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class PoissonNLL(Loss):
    """`exp(x) - y x`, the negative log-likelihood of counts `y` up to a constant; `x` is the logarithm of
    the rate (Nelder & Wedderburn 1972).

    Shape: `(N, *)` and `(N, *)`.

    Args:
        full: add Stirling's approximation of the constant, `y log y - y + log(2 pi y) / 2`, where `y > 1`.
        reduction: `none`, `mean` or `sum`.

    >>> import torch
    >>> PoissonNLL()(torch.tensor([0.0]), torch.tensor([3]))
    tensor(1.)
    """

    def __init__(self, full: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.full = full

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(input, target, log_input=True, full=self.full, reduction=self.reduction)


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

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        error = target - input
        return self.reduced(torch.maximum(self.q * error, (self.q - 1) * error))


class LogCosh(Loss):
    """`log(cosh(x - y))`: squared for small errors, linear for large ones, smooth throughout.

    Computed as `|e| + log(1 + exp(-2 |e|)) - log 2`, which does not overflow.
    Shape: `(N, *)` and `(N, *)`. Source: Keras LogCosh.

    Raises:
        ValueError: two shapes.

    >>> LogCosh()(torch.tensor([0.0, 1000.0]), torch.tensor([0.0, 0.0]))
    tensor(499.6534)
    """

    def values(self, input: Tensor, target: Tensor) -> Tensor:
        error = (input - target).abs()
        return self.reduced(error + F.softplus(-2 * error) - log(2))
