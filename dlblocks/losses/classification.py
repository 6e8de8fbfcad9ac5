"""Losses of classes and labels: N instances, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import (
    ClassLoss,
    ClassWeights,
    Loss,
    check_classes,
    focused,
    reduced,
    turned,
)


class BCE(Loss):
    """Binary cross-entropy on logits: `-(w y log s + (1 - y) log(1 - s))`, `s = sigmoid(x)` (Good 1952).

    Shape: `(N, *)` and `(N, *)`; targets from 0 to 1.

    Args:
        pos_weight: `w`, one number for each output of the last dimension; a single one for `(N,)`.
        label_smoothing: `e`; targets become `y (1 - e) + e / 2`.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.
        UserError: `pos_weight` has not one number for each output.

    >>> BCE()(torch.tensor([0.0, 1e4]), torch.tensor([1.0, 1.0]))
    tensor(0.3466)
    """

    def __init__(
        self, pos_weight: Sequence[float] | None = None, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.pos_weight = ClassWeights(pos_weight, "loss.pos_weight")
        # Looking up the parts of a module takes a third of the time of a small batch.
        self._balanced = pos_weight is not None
        self.label_smoothing = label_smoothing

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight = (
            self.pos_weight.factors(input, input.shape[-1] if input.ndim > 1 else 1)
            if self._balanced
            else None
        )
        return F.binary_cross_entropy_with_logits(input, target, pos_weight=weight, reduction=reduction)


class CrossEntropy(Loss):
    """Categorical cross-entropy on logits: `-sum_c w_c y_c log p_c`, `p = softmax(x)` (Good 1952).

    Shape: `(N, C, *)` logits; targets are indices `(N, *)`, or one-hot or soft `(N, C, *)` of any type.

    Args:
        weight: `w`, one number for each class; `mean` is the weighted mean of indices, and, as in torch,
            the sum over N of one-hot and soft targets.
        ignore_index: targets of this index don't count.
        label_smoothing: `e`; targets become `y (1 - e) + e / C` (Szegedy et al. 2015, arXiv:1512.00567).
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together, indices that are no whole-number type, or an
            `ignore_index` that is a class with targets that are no indices.
        UserError: `weight` has not one number for each class.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> CrossEntropy()(logits, torch.tensor([0, 1]))
    tensor(0.4100)
    >>> CrossEntropy()(logits, torch.tensor([[1, 0], [0, 1]]))
    tensor(0.4100)
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.weight = ClassWeights(weight, "loss.weight")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def check(self, input: Tensor, target: Tensor) -> None:
        check_classes(self, input, target, soft=True)
        if self.ignore_index >= 0 and target.shape == input.shape:
            raise ValueError(
                f"CrossEntropy: ignore_index={self.ignore_index} needs a target of indices (N,), got one-hot"
                f" or soft {tuple(target.shape)}"
            )

    def counts(self, input: Tensor, target: Tensor) -> Tensor | None:
        return None if target.shape == input.shape else self.weight.of(input, target, self.ignore_index)

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight.factors(input, input.shape[1]),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )


class NLL(ClassLoss):
    """Negative log-likelihood of log-probabilities: `-w_y x_y` (Fisher 1922).

    Shape: `(N, C, *)` and indices `(N, *)`.

    Args:
        weight: `w`, one number for each class; `mean` is the weighted mean.
        ignore_index: targets of this index don't count.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together, or indices that are no whole-number type.
        UserError: `weight` has not one number for each class.

    >>> NLL()(torch.tensor([[-0.5, -1.5], [-2.0, -0.25]]), torch.tensor([0, 1]))
    tensor(0.3750)
    """

    def __init__(
        self, weight: Sequence[float] | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.weight = ClassWeights(weight, "loss.weight")
        self._weighs = weight is not None  # as in BCE
        self.ignore_index = ignore_index

    def counts(self, input: Tensor, target: Tensor) -> Tensor | None:
        return self.weight.of(input, target, self.ignore_index)

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        weight = self.weight.factors(input, input.shape[1]) if self._weighs else None
        return F.nll_loss(input, target, weight=weight, ignore_index=self.ignore_index, reduction=reduction)


class KLDiv(Loss):
    """Kullback-Leibler divergence `sum_c y_c (log y_c - x_c)` of log-probabilities `x` from probabilities `y`
    (Kullback & Leibler 1951).

    Shape: `(N, C)` and `(N, C)`.

    Args:
        log_target: the target is log-probabilities too.
        reduction: `none`, `batchmean` (over instances), `mean` (over all numbers) or `sum`.

    Raises:
        ValueError: two shapes.

    >>> KLDiv()(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """

    reductions: ClassVar[tuple[str, ...]] = ("none", "batchmean", "mean", "sum")

    def __init__(self, log_target: bool = False, reduction: str = "batchmean") -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        # torch's own has no batching rule, which stacked runs need.
        if self.log_target:
            return reduced(target.exp() * (target - input), reduction)
        return reduced(torch.xlogy(target, target) - target * input, reduction)


class Hinge(Loss):
    """`max(0, margin - y x)` with `y` -1 or 1 (Cortes & Vapnik 1995). A target of 0 counts as -1.

    Shape: `(N, *)` and `(N, *)`.

    Args:
        margin: the score beyond which an instance costs nothing.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> Hinge()(torch.tensor([0.5, 3.0, 1.0]), torch.tensor([1, 1, 0]))
    tensor(0.8333)
    """

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(self.violations(input, target), reduction)

    def violations(self, input: Tensor, target: Tensor) -> Tensor:
        """How far each score falls short of the margin."""
        return turned(input, target).add_(self.margin).relu_()


class SquaredHinge(Hinge):
    """`max(0, margin - y x)^2` with `y` -1 or 1 (Keras SquaredHinge). A target of 0 counts as -1.

    Shape: `(N, *)` and `(N, *)`.

    Raises:
        ValueError: two shapes.

    >>> SquaredHinge()(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.5000)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(self.violations(input, target).square(), reduction)


class BinaryFocal(Loss):
    """Binary cross-entropy whose easy instances count less: `-a_y (1 - p_y)^gamma log p_y`, with `p_y` the
    probability of the target (Lin et al. 2017, arXiv:1708.02002).

    Shape: `(N, *)` logits and `(N, *)` targets 0 or 1.

    Args:
        gamma: how much less; 0 is bce.
        alpha: weight of target 1, that of target 0 is `1 - alpha`; None for no weights.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> BinaryFocal(gamma=0.0)(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """

    def __init__(self, gamma: float = 2.0, alpha: float | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.gamma = gamma
        self.alpha = alpha

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        cost = F.binary_cross_entropy_with_logits(input, target, reduction="none")
        loss = focused(cost, self.gamma)
        if self.alpha is not None:
            loss = loss * (self.alpha * target + (1 - self.alpha) * (1 - target))
        return reduced(loss, reduction)


class Focal(ClassLoss):
    """Categorical cross-entropy whose easy instances count less: `-(1 - p_y)^gamma log p_y`, `p = softmax(x)`
    (Lin et al. 2017, arXiv:1708.02002).

    Shape: `(N, C, *)` logits and indices `(N, *)`.

    Args:
        gamma: how much less; 0 is cross_entropy.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together, or indices that are no whole-number type.

    >>> Focal(gamma=0.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """

    def __init__(self, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.gamma = gamma

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(focused(F.cross_entropy(input, target, reduction="none"), self.gamma), reduction)
