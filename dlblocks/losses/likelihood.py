"""Negative log-likelihoods of values: what the net gives are the parameters of a distribution."""

from __future__ import annotations

from math import log, pi

from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import Loss, reduced


class PoissonNLL(Loss):
    """`exp(x) - y x`, the negative log-likelihood of counts `y` up to a constant; `x` is the logarithm of
    the rate (Nelder & Wedderburn 1972). Of the rate itself, `x - y log(x + 1e-8)`.

    Shape: `(N, *)` and `(N, *)`.

    Args:
        log_input: whether the input is the logarithm of the rate, or the rate, which is above 0.
        full: add Stirling's approximation of the constant, `y log y - y + log(2 pi y) / 2`, where `y > 1`.
        reduction: `none`, `mean` or `sum`.

    >>> import torch
    >>> PoissonNLL()(torch.tensor([0.0]), torch.tensor([3]))
    tensor(1.)
    """

    def __init__(self, log_input: bool = True, full: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.log_input = log_input
        self.full = full

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.poisson_nll_loss(input, target, self.log_input, self.full, reduction=reduction)


class Tweedie(Loss):
    """`exp((2 - p) x) / (2 - p) - y exp((1 - p) x) / (1 - p)`, half the deviance of Tweedie's distribution up
    to a constant; `x` is the logarithm of the mean (Tweedie 1984; Jorgensen 1987).

    For amounts that are often exactly 0, such as claims or rainfall. Shape: `(N, *)` and `(N, *)`.

    Args:
        p: the power of the mean that the variance is proportional to; 1 is Poisson's, 2 is gamma's.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> import torch
    >>> Tweedie(p=1.5)(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(4.)
    """

    def __init__(self, p: float = 1.5, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.p = p

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        a, b = 2 - self.p, 1 - self.p
        return reduced((a * input).exp() / a - target * (b * input).exp() / b, reduction)


class GammaNLL(Loss):
    """`x + y exp(-x)`, the negative log-likelihood of a gamma distribution of fixed shape, up to a factor and a
    constant; `x` is the logarithm of the mean (Nelder & Wedderburn 1972).

    Shape: `(N, *)` and `(N, *)`; targets above 0.

    Raises:
        ValueError: two shapes.

    >>> import torch
    >>> GammaNLL()(torch.tensor([0.0]), torch.tensor([2.0]))
    tensor(2.)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(input + target * (-input).exp(), reduction)


class GaussianNLL(Loss):
    """`(s + (y - m)^2 exp(-s)) / 2`: mean `m` and logarithm of the variance `s` of a normal distribution (Nix &
    Weigend 1994).

    Shape: `(N, 2 K)` and `(N, K)`: the means are followed by the logarithms of the variances.

    Args:
        full: add the constant `log(2 pi) / 2`.
        eps: the least variance.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: not twice as many inputs as targets.

    >>> import torch
    >>> GaussianNLL()(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]]))
    tensor(2.)
    """

    def __init__(self, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.full, self.eps = full, eps

    def check(self, input: Tensor, target: Tensor) -> None:
        if input.ndim < 1 or (*input.shape[:-1], input.shape[-1] / 2) != tuple(target.shape):
            raise ValueError(
                f"GaussianNLL: input {tuple(input.shape)} must have two numbers, mean and logarithm of the"
                f" variance, for each number of the target {tuple(target.shape)}, in the last dimension"
            )

    def typed(self, target: Tensor, input: Tensor) -> Tensor:
        return target.to(input.dtype)

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        mean, log_variance = input.chunk(2, -1)
        log_variance = log_variance.clamp_min(log(self.eps))
        values = (log_variance + (target - mean).square() * (-log_variance).exp()) / 2
        return reduced(values + log(2 * pi) / 2 if self.full else values, reduction)
