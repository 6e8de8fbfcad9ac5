"""Losses of whole masks: how much of a region is found. N pictures, C classes, `*` places.

Logits `(N, C, *)` with a class for each place, `(N, *)`: softmax over the classes, and a region for each
class. Logits with a target of their own shape, 0 or 1: sigmoid, and a region for each channel, or for each
picture where logits are `(N, *)` of two dimensions. `values` gives one number for each region.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dlblocks.losses.base import Loss, check_classes, one_hot, reduced


class RegionLoss(Loss):
    """What the losses of regions share: probabilities and masks `(N, regions, places)`."""

    def check(self, input: Tensor, target: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"{type(self).__name__}: input {tuple(input.shape)} must be (N, C, *) or (N, *)")
        check_classes(self, input, target, soft=True)

    def regions(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and masks, `(N, regions, places)`."""
        if target.shape == input.shape:
            shape = (input.shape[0], 1 if input.ndim == 2 else input.shape[1], -1)
            return input.sigmoid().reshape(shape), target.reshape(shape)
        mask = one_hot(target, input)
        return input.softmax(1).flatten(2), mask.flatten(2)


class Tversky(RegionLoss):
    """`1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)` (Salehi et al. 2017, arXiv:1706.05721).

    TP, FP, FN are sums of probabilities over the places of a region. alpha = beta = 1/2 is dice, 1 is jaccard.
    Shape: `(N, C, *)` logits and indices `(N, *)`, or logits and 0 or 1 of one shape.

    Args:
        alpha: weight of places found wrongly.
        beta: weight of places missed.
        smooth: added to both sides of the fraction; an empty region that is left alone costs nothing.
        reduction: `none`, `mean` or `sum`, over regions.

    Raises:
        ValueError: shapes that don't belong together.

    >>> Tversky(smooth=0.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.5000)
    """

    def __init__(
        self, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(self.missed(input, target), reduction)

    def missed(self, input: Tensor, target: Tensor) -> Tensor:
        """`(N, regions)`: the share that is missed."""
        p, mask = self.regions(input, target)
        hits = (p * mask).sum(-1)
        false, misses = p.sum(-1) - hits, mask.sum(-1) - hits
        whole = hits + self.alpha * false + self.beta * misses + self.smooth
        return 1 - (hits + self.smooth) / whole.clamp_min(torch.finfo(p.dtype).tiny)


class Dice(Tversky):
    """`1 - (2 TP + smooth) / (sum p + sum y + smooth)` (Milletari et al. 2016, arXiv:1606.04797).

    Shape: `(N, C, *)` logits and indices `(N, *)`, or logits and 0 or 1 of one shape.

    Args:
        smooth: added to both sides of the fraction; an empty region that is left alone costs nothing.
        reduction: `none`, `mean` or `sum`, over regions.

    Raises:
        ValueError: shapes that don't belong together.

    >>> Dice(smooth=0.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.5000)
    """

    def __init__(self, smooth: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(0.5, 0.5, smooth / 2, reduction)


class Jaccard(Tversky):
    """`1 - (TP + smooth) / (sum p + sum y - TP + smooth)`: intersection over union (Rahman & Wang 2016).

    Shape: `(N, C, *)` logits and indices `(N, *)`, or logits and 0 or 1 of one shape.

    Args:
        smooth: added to both sides of the fraction; an empty region that is left alone costs nothing.
        reduction: `none`, `mean` or `sum`, over regions.

    Raises:
        ValueError: shapes that don't belong together.

    >>> Jaccard(smooth=0.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])).round(decimals=4)
    tensor(0.6667)
    """

    def __init__(self, smooth: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(1.0, 1.0, smooth, reduction)


class FocalTversky(Tversky):
    """`tversky^(1 / gamma)` (Abraham & Khan 2018, arXiv:1810.07842).

    Shape: `(N, C, *)` logits and indices `(N, *)`, or logits and 0 or 1 of one shape.

    Args:
        gamma: above 1, regions that are hardly found count more.
        alpha, beta, smooth: as of tversky.
        reduction: `none`, `mean` or `sum`, over regions.

    Raises:
        ValueError: shapes that don't belong together.

    >>> FocalTversky(gamma=1.0, smooth=0.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.5000)
    """

    def __init__(
        self,
        gamma: float = 4 / 3,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(alpha, beta, smooth, reduction)
        self.gamma = gamma

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        # Kept off zero, where the gradient of a root is infinite.
        missed = self.missed(input, target).clamp_min(torch.finfo(input.dtype).eps)
        return reduced(missed ** (1 / self.gamma), reduction)


class GeneralizedDice(RegionLoss):
    """`1 - 2 sum_c w_c TP_c / sum_c w_c (sum p_c + sum y_c)`, `w_c = 1 / (sum y_c)^2`: small regions count as much
    as large ones (Sudre et al. 2017, arXiv:1707.03237).

    Shape: `(N, C, *)` logits and indices `(N, *)`, or logits and 0 or 1 of one shape; a value for each picture.

    Args:
        eps: the least size of a region, and of the denominator.
        reduction: `none`, `mean` or `sum`, over pictures.

    Raises:
        ValueError: shapes that don't belong together.

    >>> GeneralizedDice()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.5000)
    """

    def __init__(self, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.eps = eps

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        p, mask = self.regions(input, target)
        size = mask.sum(-1)
        # A class that a picture doesn't have gets the weight of its smallest region.
        smallest = torch.where(size > 0, size, torch.inf).amin(-1, keepdim=True)
        weight = torch.where(size > 0, size, smallest.clamp_max(mask.shape[-1])).clamp_min(self.eps) ** -2
        hits = (weight * (p * mask).sum(-1)).sum(-1)
        whole = (weight * (p.sum(-1) + size)).sum(-1)
        return reduced(1 - 2 * hits / whole.clamp_min(self.eps), reduction)


class Lovasz(RegionLoss):
    """The convex surrogate of `1 - intersection / union` (Berman et al. 2018, arXiv:1705.08790).

    `sum_i e_(i) (J_i - J_(i-1))`: errors e in falling order, J_i the Jaccard loss of getting the first i wrong.
    Of classes (softmax), e = |y - p|, the mean over the classes that the picture has; of masks, the hinge
    e = max(0, 1 - x (2 y - 1)). A value for each picture.
    Shape: `(N, C, *)` logits and indices `(N, *)`, or logits and 0 or 1 of one shape.

    Raises:
        ValueError: shapes that don't belong together.

    >>> Lovasz()(torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        p, mask = self.regions(input, target)
        if target.shape == input.shape:
            errors = (1 - input.reshape(p.shape) * (2 * mask - 1)).clamp_min(0)
            return reduced(_lovasz(errors, mask).mean(-1), reduction)
        present = mask.amax(-1)
        each = _lovasz((mask - p).abs(), mask) * present
        return reduced(each.sum(-1) / present.sum(-1), reduction)


def _lovasz(errors: Tensor, mask: Tensor) -> Tensor:
    ordered, index = errors.sort(-1, descending=True)
    wanted = mask.gather(-1, index)
    left = wanted.sum(-1, keepdim=True) - wanted.cumsum(-1)
    union = wanted.sum(-1, keepdim=True) + (1 - wanted).cumsum(-1)
    jaccard = 1 - left / union
    return (ordered * torch.diff(jaccard, prepend=torch.zeros_like(jaccard[..., :1]))).sum(-1)
